"""DICOM SEG and RTSTRUCT objects: which series each refers to, by UIDs alone, which names it holds, how much of each.

A name of a file or a folder says nothing here: two series of a study often carry objects of one name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from medseg.errors import Refusal, UsageError
from medseg.ingest import SeriesRecord, read_volume
from medseg.ingest.dicom_header import Header, read_header
from medseg.labels.dicom_labels import open_labels, read_labels
from medseg.labels.dicom_objects import hashed, kind_of, label_object, read_object, well_formed
from medseg.labels.image_grid import ImageGrid
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme, listed

_WORDS = {"seg": "SEG", "rtstruct": "RTSTRUCT"}
_SHOWN = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelObject:
    """One SEG or RTSTRUCT file."""

    path: str  # where it lies
    modality: str  # ``"SEG"`` or ``"RTSTRUCT"``
    patient: str  # pseudonym of its patient, as in :class:`~medseg.ingest.SeriesRecord`
    series: frozenset[str]
    instances: frozenset[str]
    frames: frozenset[str]
    """``series``, ``instances``, ``frames``: hashes of the UIDs of series, images and frames of reference that it
    refers to; images are those of its segments or contours where it names them there."""
    names: tuple[str, ...]  # its segments or ROIs, in their order
    made: str = ""  # date and time of its content, for the order among objects of one series
    empty: frozenset[str] = frozenset()
    """Names of ROIs that have no contours, as templates of planning systems leave them."""

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return f"{self.modality} {Path(self.path).parent.name}/{Path(self.path).name}"


def open_object(path: str, patient: str = "") -> LabelObject:
    """What a SEG or RTSTRUCT refers to and holds.

    Raises ``Refusal``: ``not-an-image`` if it is neither, and whatever :func:`medseg.labels.dicom_objects.read_object`
    refuses.
    """
    header, name = label_object(path), Path(path).name
    if header is None:
        raise Refusal("not-an-image", f"{name} is no segmentation and no structure set")
    data = read_object(header, name)
    with well_formed(name), disable_value_validation():  # which logs every value that is a letter too long
        kind = _WORDS[kind_of(header)]
        made = "StructureSet" if kind == "RTSTRUCT" else "Content"
        drawn = data.get("ROIContourSequence") or data.get("PerFrameFunctionalGroupsSequence") or ()
        images = frozenset(_values(drawn, "ReferencedSOPInstanceUID"))
        frames = {*_values([data], "FrameOfReferenceUID"), *_values([data], "ReferencedFrameOfReferenceUID")}
        return LabelObject(
            path,
            kind,
            patient,
            frozenset(_values(_below(data), "SeriesInstanceUID")),
            images or frozenset(_values([data], "ReferencedSOPInstanceUID")),
            frozenset(frames),
            _names(data),
            "".join(str(data.get(f"{made}{part}", "")) for part in ("Date", "Time")),
            _empty(data),
        )


def _names(data: Dataset) -> tuple[str, ...]:
    background = (0, data.get("PixelPaddingValue"))  # numbers of what is no structure; only a LABELMAP has them
    segments = [
        str(one.get("SegmentLabel", ""))
        for one in data.get("SegmentSequence") or ()
        if one.get("SegmentNumber") not in background
    ]
    names = segments or [str(one.get("ROIName", "")) for one in data.get("StructureSetROISequence") or ()]
    return tuple(name.strip() for name in names if name.strip())


def _empty(data: Dataset) -> frozenset[str]:
    rois = data.get("StructureSetROISequence") or ()
    drawn = {
        one.get("ReferencedROINumber") for one in data.get("ROIContourSequence") or () if one.get("ContourSequence")
    }
    names = {number: str(one.get("ROIName", "")).strip() for one in rois for number in [one.get("ROINumber")]}
    return frozenset(names.values()) - {name for number, name in names.items() if number in drawn}


def _below(data: Dataset) -> list[Dataset]:
    """The items of an object's sequences: what it refers to, not what it is."""
    return [item for element in data if element.VR == "SQ" for item in element.value]


def _values(items: Iterable[Dataset], keyword: str) -> Iterator[str]:
    """Hashes of every value of a UID in some items, whatever the depth."""
    for item in items:
        for element in item.iterall():
            if element.keyword == keyword and element.value:
                yield hashed(element.value)


def objects_among(records: Iterable[SeriesRecord]) -> list[SeriesRecord]:
    """The records of SEG and RTSTRUCT objects."""
    return [record for record in records if record.kind == "dicom" and record.modality in _WORDS.values()]


def is_object(path: str) -> bool:
    """Whether a file is a SEG or an RTSTRUCT, by its content."""
    return Path(path).is_file() and label_object(path) is not None


def object_in(path: str) -> LabelObject:
    """What an object holds.

    Raises ``UsageError`` if it cannot be read.
    """
    try:
        state = Path(path).stat()
        return _unchanged(path, state.st_mtime_ns, state.st_size)
    except (Refusal, OSError) as refusal:
        raise UsageError(f"{path}: {refusal}; repair it, or leave the case out") from refusal


@lru_cache(maxsize=4096)
def _unchanged(path: str, _mtime_ns: int, _size: int) -> LabelObject:
    return open_object(path)  # read anew once it was written again, as a corrected structure set is


@lru_cache(maxsize=4096)
def _header(path: str) -> Header | None:
    return read_header(path)


def series_of(one: LabelObject, usable: Sequence[SeriesRecord], refused: Sequence[SeriesRecord]) -> SeriesRecord | str:
    """The series that an object belongs to, or why there is none or more than one.

    By the series it names; where that is not there, by the images it names (a series of its patient that was sent on
    under another UID); where it names neither, by the frame of reference, if one series alone of its patient has it.
    """
    found = [record for record in usable if record.series_uid_hash in one.series]
    if not found and one.instances:
        own = [record for record in usable if record.kind == "dicom" and record.patient_hash == one.patient]
        found = [record for record in own if _instances(record) & one.instances]
    if not found and not one.series and not one.instances:
        found = [record for record in usable if record.patient_hash == one.patient and _frame(record) in one.frames]
    if len(found) > 1 and one.instances:
        found = [record for record in found if _instances(record) >= one.instances] or found
    if len(found) > 1:
        shown = listed([_described(record) for record in found[:_SHOWN]])
        return f"{one.shown} refers to {len(found)} series: {shown}"
    if not found:
        return f"{one.shown} refers to {_why_none(one, refused)}"
    if found[0].patient_hash != one.patient:
        return f"{one.shown} names another patient than its series in {Path(found[0].source).name}"
    return found[0]


def _why_none(one: LabelObject, refused: Sequence[SeriesRecord]) -> str:
    broken = [record for record in refused if record.series_uid_hash in one.series and record.modality != one.modality]
    if broken:
        return f"a series that cannot be used ({broken[0].reason}: {broken[0].message})"
    return "a series that is not there" if one.series or one.instances else "no series, nor to one frame of reference"


def _described(record: SeriesRecord) -> str:
    return f"{record.modality} {record.case_id} ({record.description or Path(record.source).name})"


def _first_header(record: SeriesRecord) -> Header | None:
    return _header(record.files[0]) if record.kind == "dicom" and "!/" not in record.files[0] else None


def _frame(record: SeriesRecord) -> str:
    header = _first_header(record)
    return "" if header is None else header.frame_of_reference_hash


@lru_cache(maxsize=1024)
def _instances(record: SeriesRecord) -> frozenset[str]:
    headers = (_header(file) for file in record.files if "!/" not in file)
    return frozenset(header.sop_instance_hash for header in headers if header is not None)


def person_of(record: SeriesRecord) -> str:
    """Pseudonym of the name in a series' first file, spellings of one name alike; empty where it has none."""
    header = _first_header(record)
    return "" if header is None else header.name_hash


def volumes_of(entry: Any, image: Path) -> Iterator[tuple[str, float]]:
    """Name and volume in ml of every mask, segment or ROI of a label."""
    files = dict.fromkeys(entry.values()) if isinstance(entry, Mapping) else [entry]
    for file in files:
        names = [name for name, own in entry.items() if own == file] if isinstance(entry, Mapping) else []
        try:
            if is_object(file):
                yield from _volumes_in(file, image, names)
            else:
                array, geometry, _ = read_volume(file)
                yield names[0], float(np.count_nonzero(array)) * geometry.voxel_volume_mm3 / 1000.0
        except Refusal as refusal:
            _log.warning("the volumes in %s are not known: %s", Path(file).name, refusal)


def _volumes_in(file: str, image: Path, wanted: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Of every segment or ROI of an object, one after the other, so that they may overlap."""
    header = label_object(file)
    assert header is not None
    found, grid, names = open_labels(header, Path(file).name), ImageGrid.of(image), object_in(file).names
    for name in dict.fromkeys(wanted or names):
        others = {other: None for other in names if other != name}
        scheme, rules = LabelScheme({1: name}), ReadingRules(others, resample=True, missing_slices="empty")
        painted = read_labels(found, scheme, rules, grid)
        yield name, float(np.count_nonzero(painted.array)) * painted.geometry.voxel_volume_mm3 / 1000.0
