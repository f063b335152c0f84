"""BIDS: images in ``sub-X[/ses-Y]/anat``, label maps (``_dseg``, ``_mask``) in a derivatives folder.

Follows BIDS 1.10, "Derivatives / Imaging data types / Segmentations": a derivative's name repeats the entities of its
source; ``space-`` and the ``.tsv`` look-up table (``index``, ``name``) are read where they are given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError
from medseg.ingest import case_id_of
from medseg.ingest.left_out import without_own
from medseg.manifests.items import Item, common_start, image_files, read_json_object, relative_name
from medseg.manifests.manifest import Manifest
from medseg.tables import read_table

_LABEL_SUFFIXES = ("dseg", "mask")
_IDENTITY = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part")
"""Entities by which an image and its label are told from those of another scan."""


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


def read(images: Path, labels: Path | None) -> Manifest:
    """Match a BIDS dataset (its root, or a folder in it) with the label maps of a derivative's folder.

    By default that is the one folder below ``derivatives`` that holds label maps. A UsageError if no derivative or
    several could be meant, or a label could belong to several images.
    """
    derivative = labels if labels is not None else _only_derivative(images)
    start = common_start(images, derivative)
    raw = [path for path in image_files(images) if not _is_derivative(path, images, derivative)]
    sources = [_Name.of(path) for path in without_own(raw)]
    by_subject: dict[str, list[_Name]] = defaultdict(list)
    for source in sources:
        if "sub" in source.entities and source.suffix not in _LABEL_SUFFIXES:
            by_subject[source.entities["sub"]].append(source)
    names = [_Name.of(path) for path in image_files(derivative)]
    maps = [name for name in names if name.suffix in _LABEL_SUFFIXES and "sub" in name.entities]
    if not maps:
        raise UsageError(f"{derivative} holds no _dseg or _mask image; give the derivative that holds the labels")
    items: list[Item] = []
    for label in maps:
        source = _source_of(label, by_subject[label.entities["sub"]])
        image, mask = relative_name(source.path, start), relative_name(label.path, start)
        items.append({"image": image, "label": mask, "patient_id": f"sub-{label.entities['sub']}"})
    _refuse_twice(items)
    return Manifest({**_description(images), "labels": _look_up_table(derivative), "training": items}, start)


def _only_derivative(images: Path) -> Path:
    folders = sorted(path for path in (images / "derivatives").glob("*") if path.is_dir())
    holding = [one for one in folders if any(_Name.of(path).suffix in _LABEL_SUFFIXES for path in image_files(one))]
    if len(holding) != 1:
        found = ", ".join(folder.name for folder in holding) or "none"
        raise UsageError(f"derivatives with label maps below {images}: {found}; give one of them with --labels")
    return holding[0]


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


def _refuse_twice(items: Sequence[Item]) -> None:
    seen: dict[str, str] = {}
    for image, label in ((item["image"], item["label"]) for item in items):
        if image in seen:
            raise UsageError(f"{label} and {seen[image]} are both labels of {image}; keep one a derivative")
        seen[image] = label


def _description(images: Path) -> dict[str, object]:
    path = images / "dataset_description.json"
    found = read_json_object(path) if path.exists() else {}
    return {"name": str(found.get("Name", images.name)), "licence": str(found.get("License", ""))}


def _look_up_table(derivative: Path) -> dict[str, str]:
    """Label names from every ``*dseg.tsv`` of a derivative: BIDS wants one for all, or one beside each map."""
    names: dict[str, str] = {}
    for table in sorted(derivative.rglob("*dseg.tsv")):
        for row in read_table(table, delimiter="\t").rows:
            index, name = row.get("index", "").strip(), row.get("name", "").strip()
            if index and name and names.setdefault(index, name) != name:
                raise UsageError(f"{table} has two names for the value {index}, {names[index]!r}, {name!r}; keep one")
    return {"0": "background"} | names if names else {}
