"""Pairs of label maps scored on the reference's grid, in this process or in several, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import CaseFailed, Refusal
from medseg.evaluation.calibration import (
    Probabilities,
    adaptive_calibration_error,
    count_levels,
    expected_calibration_error,
    probabilities_beside,
)
from medseg.evaluation.case import Reference, StructureResult, evaluate_case
from medseg.evaluation.definitions import Definitions
from medseg.evaluation.pairing import CaseFile, Pair
from medseg.evaluation.raters import Between, compare_raters, named
from medseg.evaluation.structures import Structures
from medseg.geometry import POSITION_TOLERANCE_MM, Geometry
from medseg.labels.dicom_labels import common_grid, open_labels
from medseg.labels.dicom_objects import label_object
from medseg.labels.image_grid import ImageGrid
from medseg.labels.label_map import LabelMap
from medseg.labels.raters import one_map
from medseg.labels.read import read_label
from medseg.labels.scheme import LabelScheme
from medseg.resources import bounded_map

POOL_PAYS_AFTER_SECONDS = 3.0
"""Starting workers takes seconds; small cases are finished by then."""


@dataclass(frozen=True)
class ScoredCase:
    """Rows of one case, or the refusal that there are none for; ``note`` is what was done to the prediction before."""

    pair: Pair
    rows: Sequence[StructureResult] = ()
    refusal: Refusal | None = None
    note: str = ""
    between: Sequence[Between] = ()  # of several raters: the prediction against each, and each against each

    @property
    def case_id(self) -> str:
        """The case."""
        return self.pair.case_id


def score_all(
    pairs: Sequence[Pair], structures: Structures, tolerance_mm: float, definitions: Definitions, workers: int
) -> Iterator[ScoredCase]:
    """Score in this process first; hand the rest to a pool only if it takes long enough to be worth one.

    What a reference says of itself goes before ``structures``. Cases come as they are finished. Raises ``CaseFailed``
    if a worker process dies.
    """
    score = partial(_score, structures=structures, tolerance_mm=tolerance_mm, definitions=definitions)
    start = time.monotonic()
    for done, pair in enumerate(pairs):
        if workers > 1 and len(pairs) - done > 1 and time.monotonic() - start > POOL_PAYS_AFTER_SECONDS:
            try:
                yield from bounded_map(score, pairs[done:], min(workers, len(pairs) - done))
            except BrokenProcessPool as error:
                what = "a worker process died, most likely for want of memory; nothing was written; use fewer workers"
                raise CaseFailed(what) from error
            return
        yield score(pair)


def _score(pair: Pair, structures: Structures, tolerance_mm: float, definitions: Definitions) -> ScoredCase:
    """Score one case; a refusal is a result, so that one bad file does not stop the others."""
    try:
        prediction, reference, raters = _read(pair, structures.scheme)
        grid = reference.geometry
        array, note = on_grid(prediction.array, prediction.geometry, grid)
        own, truth = pair.reference, structures.truth
        truth = replace(truth, ignore=truth.ignore if own.ignore is None else own.ignore, unknown=own.unknown)
        on_axes = partial(evaluate_case, spacing_mm=grid.spacing_mm, axes_mm=grid.affine[:3, :3])
        score = partial(on_axes, labels=structures.declared, tolerance_mm=tolerance_mm, truth=truth)
        rows = with_calibration(score(array, reference.array, definitions=definitions), pair, reference, truth)
        plain = replace(definitions, lesion_iou=None, centreline=False)
        between = named(compare_raters(array, raters, partial(score, definitions=plain), truth.ignore), pair.case_id)
        if ignored := reference.values.voxels.get(truth.ignore, 0) if truth.ignore is not None else 0:
            share = f"{ignored / reference.array.size:.1%} of the voxels were judged by nobody and do not count"
            note = f"{note}; {share}" if note else share
    except Refusal as refusal:
        return ScoredCase(pair, refusal=refusal)
    said = [f"the reference is `raters`: {pair.reference.way}, of {len(raters)} raters"] if raters else []
    notes = (*prediction.notes, *reference.notes, *said, *([note] if note else []))
    cased = [replace(row, case_id=pair.case_id) for row in rows]
    return ScoredCase(pair, cased, note="; ".join(notes), between=between)


def _read(pair: Pair, scheme: LabelScheme) -> tuple[LabelMap, LabelMap, dict[str, LabelMap]]:
    """Both sides, and the reference by rater where there are several.

    DICOM objects lie on the grid of their image, else of the other side, else on one of their own.
    """
    sides = (pair.prediction, pair.reference)
    objects = [label_object(side.path) for side in sides]
    image = next((path for side in (sides[1], sides[0]) for path in side.images[:1] if path.exists()), None)
    grid: ImageGrid | Path | None = image
    maps: list[LabelMap | None] = [
        None if header is not None else read_side(side, scheme, image)
        for side, header in zip(sides, objects, strict=True)
    ]
    if image is None and (other := next((found for found in maps if found is not None), None)) is not None:
        grid = ImageGrid(other.geometry)
    elif image is None:
        grid = ImageGrid(common_grid([open_labels(found, found.path) for found in objects if found is not None]))
    prediction, reference = (
        read_side(side, scheme, grid) if found is None else found for side, found in zip(sides, maps, strict=True)
    )
    if not (own := pair.reference).raters:
        return prediction, reference, {}
    grid = ImageGrid(reference.geometry) if image is None else image
    maps_by_rater = {name: read_side(replace(own, entry=entry), scheme, grid) for name, entry in own.raters.items()}
    return prediction, one_map(maps_by_rater, own.way, ignore=own.ignore), maps_by_rater


def read_side(side: CaseFile, scheme: LabelScheme, image: ImageGrid | Path | None) -> LabelMap:
    """The label map of one side, an object's on the grid of ``image``; raises what ``read_label`` does."""
    scheme = replace(scheme, mapping=side.mapping)
    entry = side.path if side.entry is None else side.entry
    return read_label(entry, scheme=scheme, rules=side.rules, image=image, only_declared=False)


def with_calibration(
    rows: Sequence[StructureResult], pair: Pair, reference: LabelMap, truth: Reference
) -> list[StructureResult]:
    """The rows with their calibration errors, if probabilities lie beside the prediction and know the structure.

    Which channel is which region its run says, else the order of the table of labels.
    """
    path = probabilities_beside(pair.prediction.path)
    if path is None or (found := Probabilities.open(path)) is None:
        return list(rows)
    grid, unread = found.geometry, np.uint8(0)
    on_grid(np.broadcast_to(unread, grid.shape), grid, reference.geometry)  # sizes are checked before anything is read
    regions = tuple(truth.members.values()) if pair.prediction.regions is None else pair.prediction.regions
    made = []
    for row in rows:
        values = truth.members.get(row.label, (row.label,))
        own = None if row.not_scored else found.of(values, regions)
        if own is not None:
            probability, _ = on_grid(own, grid, reference.geometry)
            if truth.ignore is not None:
                probability = np.where(reference.array == truth.ignore, 0.0, probability)
            counts = count_levels(probability, np.isin(reference.array, values))
            errors = {"ece": expected_calibration_error(counts), "ace": adaptive_calibration_error(counts)}
            row = replace(row, values={**row.values, **errors})
        made.append(row)
    return made


def along(array: NDArray[Any], grid: Geometry, target: Geometry) -> tuple[NDArray[Any], Geometry]:
    """Permute and flip the axes of a volume so that they run as closely as possible like ``target``'s.

    No value is interpolated and every voxel stays at its place in the patient. Returns a view of the volume and its new
    grid; both unchanged if the axes run that way already.
    """
    turn = nib.io_orientation(np.linalg.solve(target.affine, grid.affine))
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return array, grid
    turned = np.asarray(nib.orientations.apply_orientation(array, turn))
    return turned, Geometry(turned.shape, grid.affine @ nib.orientations.inv_ornt_aff(turn, array.shape))


def on_grid(
    prediction: NDArray[Any], grid: Geometry, reference: Geometry, names: tuple[str, str] = ("prediction", "reference")
) -> tuple[NDArray[Any], str]:
    """The prediction on the reference's grid, and what was done for it; refused where that needs interpolation.

    ``names`` is what messages call the two.
    """
    one, other = names
    if grid.displacement_mm(reference) <= POSITION_TOLERANCE_MM:
        return prediction, ""
    turned, turned_grid = along(prediction, grid, reference)
    apart_mm = turned_grid.displacement_mm(reference)
    if apart_mm <= POSITION_TOLERANCE_MM:
        return turned, (
            f"the {one}'s axes ({grid.orientation}) were put in the order and direction of the {other}'s "
            f"({reference.orientation}); no value was changed"
        )
    found, expected = f"the {one}'s grid ({grid.describe()})", f"the {other}'s ({reference.describe()})"
    advice = f"resample the {one} to the {other}'s grid"
    if turned_grid.shape == reference.shape:
        raise Refusal("geometry-mismatch", f"{found} lies up to {apart_mm:.3g} mm from {expected}; {advice}")
    corners_mm = float(np.linalg.norm(turned_grid.corners_mm() - reference.corners_mm(), axis=1).max())
    raise Refusal(
        "geometry-mismatch",
        f"{found} has another number of voxels than {expected}, and their outer corners lie up to {corners_mm:.3g} mm "
        f"apart; {advice}",
    )
