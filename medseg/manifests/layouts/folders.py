"""Plain folders: one of images, one of labels, matched by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import UsageError
from medseg.ingest import case_id_of
from medseg.ingest.own import without_own
from medseg.manifests.layouts import dicom
from medseg.manifests.layouts.names import (
    common_start,
    image_files,
    one_or_list,
    relative_name,
    split_channel,
)
from medseg.manifests.manifest import Item, Manifest

__all__ = ["read"]

_LABEL_WORDS = re.compile(r"[-_.](seg|segmentation|label|labels|mask|gt|groundtruth|manual|pred)$", re.IGNORECASE)
_IMAGE_WORDS = re.compile(r"[-_.](image|img|ct|mr|mri|t1|t1w|t2|t2w|flair|volume)$", re.IGNORECASE)


def read(images: Path, labels: Path | None) -> Manifest:
    """Match the images below one folder with the labels below another (which may be the same folder).

    An image and a label belong together if their names are equal once a channel number (``_0000``) and words such
    as ``_seg`` or ``_image`` are taken off the end; where every case lies in a folder of its own, the folders' names
    are compared instead. Several channels of one case become a list, in the order of their numbers. A folder
    without image files is searched for DICOM series, one a folder.

    Raises
    ------
    UsageError
        If two images have one name, an image has no label, or nothing is found.
    """
    label_files = _label_files(images, labels)
    cases = _group_channels(images, without_own(sorted(set(image_files(images)) - set(label_files))))
    if not cases:
        return dicom.read(images, labels, by_case_name(labels, label_files) if labels is not None else {})
    start = common_start(images, labels or images)
    items: list[Item] = [
        {"image": one_or_list([relative_name(path, start) for path in files]), "patient_id": case}
        for case, files in sorted(cases.items())
    ]
    if labels is None:
        return Manifest({"name": start.name, "labels": {}, "test": items}, start)
    _add_labels(items, labels, label_files, start)
    return Manifest({"name": start.name, "labels": {}, "training": items}, start)


def _label_files(images: Path, labels: Path | None) -> list[Path]:
    if labels is None:
        return []
    files = image_files(labels)
    if images.absolute() != labels.absolute():
        return files
    return [path for path in files if _LABEL_WORDS.search(case_id_of(path))]


def _add_labels(items: Sequence[Item], labels: Path, files: Sequence[Path], start: Path) -> None:
    by_name = by_case_name(labels, files)
    unmatched = []
    taken: dict[Path, str] = {}
    for item in items:
        case = item["patient_id"]
        label = by_name.get(case) or by_name.get(_IMAGE_WORDS.sub("", case))
        if label is None:
            unmatched.append(case)
        elif label in taken:
            raise UsageError(
                f"{taken[label]} and {case} both fit the label {label.name}; if they are channels of one case, name "
                "them CASE_0000, CASE_0001, ..."
            )
        else:
            taken[label] = case
            item["label"] = relative_name(label, start)
    if unmatched:
        raise UsageError(
            f"{len(unmatched)} of {len(items)} images have no label of the same name below {labels}, the first is "
            f"{unmatched[0]}; name them alike, or leave --labels out for images without labels"
        )


def by_case_name(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Label files by the name of their case: words such as ``_seg`` are taken off the end."""
    by_name: dict[str, Path] = {}
    for case, path in _named(folder, files):
        key = _LABEL_WORDS.sub("", case)
        if key in by_name:
            raise UsageError(f"{path} and {by_name[key]} could both be the label of {key}; keep one")
        by_name[key] = path
    return by_name


def _group_channels(folder: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for full_name, path in _named(folder, paths):
        name, channel = split_channel(full_name)
        number = channel or 0
        if number in groups[name]:
            raise UsageError(f"{path} and {groups[name][number]} are both called {name}; give each case one name")
        groups[name][number] = path
    return {name: [files[number] for number in sorted(files)] for name, files in groups.items()}


def _named(folder: Path, paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Case names: the files', or their folders' where all files are called alike (``CASE/image.nii.gz``)."""
    names = [case_id_of(path) for path in paths]
    if len(paths) > 1 and len(set(names)) == 1:
        names = [path.parent.relative_to(folder).as_posix().replace("/", "_") for path in paths]
    return list(zip(names, paths, strict=True))
