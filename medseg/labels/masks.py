"""One file per structure as one label map.

**Rules.** A mask file holds one value besides 0, whatever it is: where it is, the structure is. All masks lie on one
grid. A DICOM object with one structure is that structure's, whatever it is called, unless its name means another
declared one; of an object with several the structure of the same name is taken.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.labels.canvas import Canvas, Painted, Structure, structures_by_name
from medseg.labels.dicom_labels import LabelObject, names_in, open_labels, read_labels
from medseg.labels.dicom_objects import label_object
from medseg.labels.image_grid import ImageGrid
from medseg.labels.label_map import LabelMap, read_label_map
from medseg.labels.rules import ReadingRules, plain_name
from medseg.labels.scheme import LabelScheme, listed

_ONE = LabelScheme({1: "structure"})


def read_masks(
    files: Mapping[str, str | os.PathLike[str]], scheme: LabelScheme, rules: ReadingRules, image: ImageGrid | None
) -> Painted:
    """The label map of mask files, one mask in memory.

    ``files``: file by structure, or by a name that the rules map to one. ``scheme``, ``rules``: which structures there
    are, and what is done where masks overlap. ``image``: the image's grid, for DICOM objects; masks alone need none.
    Raises ``Refusal``: ``unmapped-structure``, ``unexpected-labels``, ``overlapping-labels``, ``geometry-mismatch``,
    and what reading one of the files raises.
    """
    where = "the label of one file per structure"
    named = structures_by_name(files, scheme, rules, where)
    canvas: Canvas | None = None
    notes = _spellings(files, where)
    grid = image
    for name, structure in named.items():
        if structure is None:
            continue
        mask, geometry, more = _mask(Path(files[name]), name, structure, scheme, rules, grid)
        grid = grid or ImageGrid(geometry)
        canvas = canvas or Canvas(geometry.shape, scheme, rules, where)
        if canvas.array.shape != geometry.shape or not grid.geometry.matches(geometry):
            raise Refusal(
                "geometry-mismatch",
                f"the mask {Path(files[name]).name} {geometry.mismatch(grid.geometry)}; bring all masks of a case onto "
                "the grid of its image",
            )
        canvas.paint(canvas.array, mask, structure)
        notes += more
    if canvas is None or grid is None:
        raise Refusal("unmapped-structure", f"{where} leaves all of {listed(list(files))} out; name one structure")
    array, more = canvas.labels()
    return Painted(array, grid.geometry, (*notes, *more))


def _spellings(files: Mapping[str, str | os.PathLike[str]], where: str) -> list[str]:
    """A note where two files are called as one structure: which of them is meant may be another question."""
    twice = [name for name in files if sum(plain_name(other) == plain_name(name) for other in files) > 1]
    return [f"{where}: {listed(twice)} are one structure and were joined"] * bool(twice)


def _mask(
    path: Path, name: str, structure: Structure, scheme: LabelScheme, rules: ReadingRules, image: ImageGrid | None
) -> tuple[NDArray[np.bool_], Geometry, tuple[str, ...]]:
    """Where the structure is, on which grid, and notes."""
    header = label_object(path)
    if header is None:
        return _of_values(read_label_map(path), path)
    found = open_labels(header, f"the label {path.name}")
    own, more = _own_rules(found, name, structure, scheme.structures.values(), rules)
    painted = read_labels(found, _ONE, own, image)
    return painted.array != 0, painted.geometry, (*more, *painted.notes)


def _of_values(found: LabelMap, path: Path) -> tuple[NDArray[np.bool_], Geometry, tuple[str, ...]]:
    values = sorted(set(found.values.voxels) - {0})
    if len(values) > 1:
        raise Refusal(
            "unexpected-labels",
            f"the mask {path.name} holds the values {listed(values[:8])}, expected one besides 0: it is a file for one "
            "structure; give a label map by itself",
        )
    return found.array != 0, found.geometry, ()


def _own_rules(
    found: LabelObject, name: str, structure: Structure, declared: Collection[str], rules: ReadingRules
) -> tuple[ReadingRules, tuple[str, ...]]:
    """Rules under which only the wanted structure of an object is read, and a note on what is left out."""
    names = names_in(found)
    means = {plain_name(key): target for key, target in rules.names.items()}
    wanted = {plain_name(name), plain_name(structure.name)}
    taken = [n for n in names if plain_name(means.get(plain_name(n)) or n) in wanted]
    if len(names) == 1 and not taken:
        other = plain_name(means.get(plain_name(names[0])) or names[0])
        taken = names if other not in map(plain_name, declared) else []
    if not taken:
        raise Refusal(
            "unmapped-structure",
            f"{found.name} holds {listed(names[:12])}, expected {structure.name}, or one structure alone; name the "
            "right file, or map its name in `roi_mapping` of the datalist",
        )
    left = len(names) - len(taken)
    own = ReadingRules(
        {other: _ONE.names[1] if other in taken else None for other in names},
        rules.threshold,
        rules.resample,
        rules.missing_slices,
    )
    return own, ((f"{found.name}: {left} other structures were left out",) if left else ())
