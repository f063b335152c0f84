"""BIDS: images in ``sub-X[/ses-Y]/anat``, label maps (``_dseg``, ``_mask``) in a derivatives folder.

Follows BIDS 1.10, "Derivatives / Imaging data types / Segmentations": a derivative's name repeats the entities of its
source; ``space-`` and the ``.tsv`` look-up table (``index``, ``name``) are read where they are given. Several maps of
one image are several raters (``rater-``, or ``desc-rater1`` and the like) or one structure each (``label-``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.ingest import case_id_of
from medseg.ingest.left_out import without_own
from medseg.manifests.items import Item, common_start, image_files, label_of, read_json_object, relative_name
from medseg.manifests.manifest import Manifest
from medseg.tables import read_table

_LABEL_SUFFIXES = ("dseg", "mask")
_IDENTITY = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part")
"""Entities by which an image and its label are told from those of another scan."""
_RATER = re.compile(r"(rater|observer|expert|reader|annotator|manual|radiologist|oncologist)[a-z0-9]*", re.IGNORECASE)
"""What a ``desc-`` that names a rater looks like; other ones may be versions or other structures."""
_MODALITIES = {**dict.fromkeys(("anat", "dwi", "func", "perf", "fmap"), "MR"), "pet": "PT", "ct": "CT"}


@dataclass(frozen=True)
class _Name:
    """A BIDS file name taken apart."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> _Name:
        *pairs, suffix = case_id_of(path).split("_")
        return cls(path, dict(pair.split("-", 1) for pair in pairs if "-" in pair), suffix)


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS dataset."""
    return (folder / "dataset_description.json").is_file()


def read(images: Path, labels: Path | None, *, raters: bool = False) -> Manifest:
    """Match a BIDS dataset (its root, or a folder in it) with the label maps of a derivative's folder.

    By default that is the one folder below ``derivatives`` that holds label maps; with ``raters`` each of several is a
    rater's, and so are maps of one image that differ in ``desc-`` alone. A UsageError if no derivative or several could
    be meant, or a label could belong to several images.
    """
    derivatives = [labels] if labels is not None else _derivatives(images, raters=raters)
    start = common_start(images, *derivatives)
    raw = [path for path in image_files(images) if not any(_is_derivative(path, images, one) for one in derivatives)]
    by_subject: dict[str, list[_Name]] = defaultdict(list)
    for source in [_Name.of(path) for path in without_own(raw)]:
        if "sub" in source.entities and source.suffix not in _LABEL_SUFFIXES:
            by_subject[source.entities["sub"]].append(source)
    maps: dict[Path, list[tuple[str, _Name]]] = defaultdict(list)
    sources: dict[Path, _Name] = {}
    for derivative in derivatives:
        for label in _maps(derivative):
            source = _source_of(label, by_subject[label.entities["sub"]])
            sources[source.path] = source
            maps[source.path].append((derivative.name if len(derivatives) > 1 else "", label))
    items = [_item(sources[path], labels_of, start, raters=raters) for path, labels_of in maps.items()]
    return Manifest({**_description(images), "labels": _look_up_table(derivatives), "training": items}, start)


def _maps(derivative: Path) -> list[_Name]:
    names = [_Name.of(path) for path in image_files(derivative)]
    maps = [name for name in names if name.suffix in _LABEL_SUFFIXES and "sub" in name.entities]
    if not maps:
        raise UsageError(f"{derivative} holds no _dseg or _mask image; give the derivative that holds the labels")
    return maps


def _item(source: _Name, maps: Sequence[tuple[str, _Name]], start: Path, *, raters: bool) -> Item:
    folder = source.path.parent.name.lower()
    modality = "CT" if source.suffix.lower() == "ct" else _MODALITIES.get(folder, "")
    session = source.entities.get("ses")
    return {
        "image": relative_name(source.path, start),
        "label": _label(source, maps, start, raters=raters),
        "patient_id": f"sub-{source.entities['sub']}",
        **({"session": f"ses-{session}"} if session else {}),
        **({"modality": modality} if modality else {}),
    }


def _label(source: _Name, maps: Sequence[tuple[str, _Name]], start: Path, *, raters: bool) -> Any:
    """One map, an object of them by structure (``label-``), or either by rater."""
    taken: dict[tuple[str, str], _Name] = {}
    for folder, one in maps:
        rater, structure = one.entities.get("rater", folder), one.entities.get("label", "")
        described = one.entities.get("desc", "")
        if not rater and len(maps) > 1 and described and (raters or _RATER.fullmatch(described)):
            rater = described
        if (rater, structure) in taken:
            raise UsageError(
                f"{one.path.name} and {taken[rater, structure].path.name} are both labels of {source.path.name}; keep "
                "one a derivative, or, if each is another rater's, say so with --several raters"
            )
        taken[rater, structure] = one
    return label_of({what: relative_name(one.path, start) for what, one in taken.items()})


def _derivatives(images: Path, *, raters: bool) -> list[Path]:
    folders = sorted(path for path in (images / "derivatives").glob("*") if path.is_dir())
    holding = [one for one in folders if any(_Name.of(path).suffix in _LABEL_SUFFIXES for path in image_files(one))]
    if not holding or (len(holding) > 1 and not raters):
        found = ", ".join(folder.name for folder in holding or folders) or "none"
        raise UsageError(
            f"derivatives with label maps below {images}: {found}; give one of them with --labels, or, if each is "
            "another rater's, say so with --several raters"
        )
    return holding


def _is_derivative(path: Path, images: Path, derivative: Path) -> bool:
    inside = path.is_relative_to(derivative) != images.is_relative_to(derivative)
    return inside or "derivatives" in path.relative_to(images).parts


def _source_of(label: _Name, candidates: Sequence[_Name]) -> _Name:
    matching = [image for image in candidates if _same_scan(label, image)]
    space = label.entities.get("space")
    if len(matching) > 1 and space in {image.suffix for image in matching}:
        matching = [image for image in matching if image.suffix == space]
    if len(matching) != 1:
        found = ", ".join(image.path.name for image in matching) or "none"
        raise UsageError(
            f"images that {label.path.name} could be the label of: {found}; expected exactly one: say which with the "
            "entity space- in the label's name (such as space-T1w), or use plain folders"
        )
    return matching[0]


def _same_scan(label: _Name, image: _Name) -> bool:
    known = [entity for entity in _IDENTITY if entity in label.entities]
    same = all(label.entities[entity] == image.entities.get(entity) for entity in known)
    return same and ("ses" in label.entities) == ("ses" in image.entities)


def _description(images: Path) -> dict[str, object]:
    path = images / "dataset_description.json"
    found = read_json_object(path) if path.exists() else {}
    return {"name": str(found.get("Name", images.name)), "licence": str(found.get("License", ""))}


def _look_up_table(derivatives: Sequence[Path]) -> dict[str, str]:
    """Label names from every ``*dseg.tsv`` of a derivative: BIDS wants one for all, or one beside each map."""
    names: dict[str, str] = {}
    for table in sorted(table for derivative in derivatives for table in derivative.rglob("*dseg.tsv")):
        for row in read_table(table, delimiter="\t").rows:
            index, name = row.get("index", "").strip(), row.get("name", "").strip()
            if index and name and names.setdefault(index, name) != name:
                raise UsageError(f"{table} has two names for the value {index}, {names[index]!r}, {name!r}; keep one")
    return {"0": "background"} | names if names else {}
