"""Images and labels in folders, matched by name; images may be DICOM, one series a folder."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError
from medseg.ingest import SeriesRecord, case_id_of, scan
from medseg.ingest.left_out import without_own
from medseg.labels.scheme import listed
from medseg.manifests.items import Item, common_start, image_files, one_or_list, relative_name, split_channel
from medseg.manifests.label_objects import objects_among
from medseg.manifests.layout_dicom import DicomChoices, read_dicom_tree
from medseg.manifests.manifest import Manifest

_LABEL_WORDS = re.compile(r"(?:^|[-_.])(seg|segmentation|label|labels|mask|gt|groundtruth|manual|pred)$", re.IGNORECASE)
_IMAGE_WORDS = re.compile(r"(?:^|[-_.])(image|img|ct|mr|mri|t1|t1w|t2|t2w|flair|volume)$", re.IGNORECASE)
_log = logging.getLogger(__name__)


def read_folders(images: Path, labels: Path | None, dicom: DicomChoices | None = None) -> Manifest:
    """Match the images below one folder with the labels below another (which may be the same folder).

    An image and a label belong together if their names are equal once a channel number (``_0000``) and words such as
    ``_seg`` or ``_image`` are taken off the end; where files of one name lie in several folders, the folders' names are
    compared instead, and the first folder is the patient. Several channels of one case become a list, in the order of
    their numbers. A folder without image files is searched for DICOM series: where SEG or RTSTRUCT objects lie among
    them or below ``labels``, these are the labels (:func:`~medseg.manifests.layout_dicom.read_dicom_tree`). Raises
    ``UsageError`` if two images have one name, an image has no label, or nothing is found.
    """
    label_files = _label_files(images, labels)
    cases = _group_channels(without_own(sorted(set(image_files(images)) - set(label_files))))
    if not cases:
        records = scan(images if labels is None or labels.absolute() == images.absolute() else [images, labels])
        if objects_among(records) and not label_files:
            return read_dicom_tree(records, common_start(images, labels or images), dicom or DicomChoices())
        return read_dicom(images, labels, by_case_name(label_files) if labels is not None else {})
    start = common_start(images, labels or images)
    items: list[Item] = [
        {
            "image": one_or_list([relative_name(files[channel], start) for channel in sorted(files)]),
            **({"case_id": case.name} if case.patient != case.name or case.by_folder else {}),
            "patient_id": case.patient,
        }
        for case, files in sorted(cases.items())
    ]
    if labels is not None:
        _add_labels(items, labels, label_files, start)
    return _manifest(start, items, labelled=labels is not None)


def _manifest(start: Path, items: list[Item], *, labelled: bool) -> Manifest:
    return Manifest({"name": start.name, "labels": {}, "training" if labelled else "test": items}, start)


def _label_files(images: Path, labels: Path | None) -> list[Path]:
    if labels is None:
        return []
    files = image_files(labels)
    if images.absolute() != labels.absolute():
        return files
    return [path for path in files if _LABEL_WORDS.search(case_id_of(path))]


def _add_labels(items: Sequence[Item], labels: Path, files: Sequence[Path], start: Path) -> None:
    by_name = by_case_name(files)
    unmatched = []
    taken: dict[Path, str] = {}
    for item in items:
        case = item.get("case_id") or item["patient_id"]
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
            f"{unmatched[0]}; name them alike, say where they lie with --image PATTERN --label PATTERN, or leave "
            f"--labels out for images without labels{_objects(scan(labels)) if labels.is_dir() else ''}"
        )


def by_case_name(files: Sequence[Path]) -> dict[str, Path]:
    """Label files by the name of their case: words such as ``_seg`` are taken off the end."""
    by_name: dict[str, Path] = {}
    for case, path in _named(files, channels=False):
        key = _LABEL_WORDS.sub("", case.name)
        if key in by_name:
            raise UsageError(f"{path} and {by_name[key]} could both be the label of {key}; keep one")
        by_name[key] = path
    return by_name


@dataclass(frozen=True, order=True)
class _Case:
    name: str
    patient: str
    by_folder: bool = False


def _group_channels(paths: Sequence[Path]) -> dict[_Case, dict[int, Path]]:
    groups: dict[_Case, dict[int, Path]] = defaultdict(dict)
    for case, path in _named(paths, channels=True):
        number = split_channel(case_id_of(path))[1] or 0
        if number in groups[case]:
            raise UsageError(_both_called(path, groups[case][number], case.name))
        groups[case][number] = path
    return groups


def _named(paths: Sequence[Path], *, channels: bool) -> list[tuple[_Case, Path]]:
    """Case names: the files', or their folders' where files of several folders share a name.

    With ``channels`` a number at the end of a file's name (``_0000``) is no part of the case's name.
    """
    names = [split_channel(case_id_of(path)) if channels else (case_id_of(path), None) for path in paths]
    if len(set(names)) == len(names):
        return [(_Case(name, name), path) for (name, _), path in zip(names, paths, strict=True)]
    shared = common_start(*(path.parent for path in paths))
    folders = _distinguishing([path.absolute().parent.relative_to(shared).parts for path in paths])
    cases = []
    for name, path, parts in zip(names, paths, folders, strict=True):
        namesakes = [other for other, known in zip(paths, names, strict=True) if known == name and other != path]
        if not parts and namesakes:
            raise UsageError(_both_called(path, namesakes[0], name[0]))
        cases.append(_Case("_".join(parts), parts[0], by_folder=True) if parts else _Case(name[0], name[0]))
    return list(zip(cases, paths, strict=True))


def _distinguishing(folders: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The levels of folders that tell files apart: ``P1/scan``, ``P2/scan`` → ``P1``, ``P2``."""
    if len({len(parts) for parts in folders}) > 1:
        return list(folders)
    levels = [level for level, names in enumerate(zip(*folders, strict=True)) if len(set(names)) > 1]
    return [tuple(parts[level] for level in levels) for parts in folders]


def _both_called(path: Path, other: Path, name: str) -> str:
    return (
        f"{path} and {other} are both called {name}; give each case one name, or say where the images lie, one pattern "
        f"a channel: --image '*/{path.name}' --label '*/LABEL'"
    )


def _objects(records: Sequence[SeriesRecord]) -> str:
    """A remark for the end of a message if there are SEG or RTSTRUCT objects, which names do not pair; else empty."""
    found = Counter(record.modality for record in objects_among(records))
    if not found:
        return ""
    counts = listed([f"{count} DICOM {modality}" for modality, count in sorted(found.items())])
    return (
        f"; {counts} lie there, which are paired with the series they refer to where no label files are given, or "
        "by pattern (--image PATTERN --label PATTERN)"
    )


def read_dicom(images: Path, labels: Path | None, label_of: Mapping[str, Path]) -> Manifest:
    """Make a manifest of the usable series below a folder; the image of an item is the folder that holds its series.

    ``label_of`` holds label files by the name of their case: the series' ``case_id``, or its folder's name. A
    UsageError if there is no usable series, a folder holds several, or a series has no label.
    """
    start = common_start(images, labels or images)
    items: list[Item] = []
    records = scan(images)
    if beside := _objects(records):
        _log.warning("label files were given%s", beside)
    for source, record in sorted(_one_a_folder(images, records).items()):
        item: Item = {"image": relative_name(Path(source), start), "case_id": record.case_id}
        item["patient_id"] = record.patient_hash
        if labels is not None:
            label = label_of.get(record.case_id) or label_of.get(Path(source).name)
            if label is None:
                raise UsageError(
                    f"the series in {source} has no label file below {labels} called {record.case_id} or "
                    f"{Path(source).name}{beside}"
                )
            item["label"] = relative_name(label, start)
        items.append(item)
    return _manifest(start, items, labelled=labels is not None)


def _one_a_folder(images: Path, records: Sequence[SeriesRecord]) -> dict[str, SeriesRecord]:
    found: dict[str, list[SeriesRecord]] = defaultdict(list)
    for record in records:
        if record.kind == "dicom" and record.usable:
            found[record.source].append(record)
    if not found:
        raise UsageError(f"{images} holds no image file and no usable DICOM series; see: medseg index {images}")
    for source, series in found.items():
        if len(series) > 1:
            raise UsageError(f"{source} holds {len(series)} usable series; expected one a folder: sort them apart")
    return {source: series[0] for source, series in found.items()}
