"""DICOM SEG and RTSTRUCT objects: which series each one refers to, by UIDs alone, and which names it holds.

A name of a file or a folder says nothing here: two series of a study often carry objects of one name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medseg.errors import Refusal
from medseg.ingest import SeriesRecord
from medseg.ingest.dicom_elements import may_be_dicom
from medseg.ingest.dicom_header import Header, read_header
from medseg.ingest.pseudonyms import uid_hash
from medseg.labels.scheme import listed

OBJECT_MODALITIES = ("SEG", "RTSTRUCT")
"""Kinds of DICOM objects that hold labels."""

_SHOWN = 4


@dataclass(frozen=True)
class LabelObject:
    """One SEG or RTSTRUCT file.

    Parameters
    ----------
    path
        Where it lies.
    modality
        ``"SEG"`` or ``"RTSTRUCT"``.
    patient
        Pseudonym of its patient, as in :class:`~medseg.ingest.SeriesRecord`.
    series, instances, frames
        Hashes of the UIDs of series, images and frames of reference that it refers to; images are those of its
        segments or contours where it names them there.
    names
        Its segments or ROIs, in their order.
    made
        Date and time of its content, for the order among objects of one series.
    """

    path: str
    modality: str
    patient: str
    series: frozenset[str]
    instances: frozenset[str]
    frames: frozenset[str]
    names: tuple[str, ...]
    made: str = ""

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return f"{self.modality} {Path(self.path).parent.name}/{Path(self.path).name}"


def read_object(path: str, patient: str = "") -> LabelObject:
    """What a SEG or RTSTRUCT refers to and holds.

    Raises
    ------
    Refusal
        ``unreadable`` if it cannot be read.
    """
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        modality = str(data.get("Modality", ""))
        drawn = data.get("ROIContourSequence") or data.get("PerFrameFunctionalGroupsSequence") or ()
        images = frozenset(_values(drawn, "ReferencedSOPInstanceUID"))
        frames = {*_values([data], "FrameOfReferenceUID"), *_values([data], "ReferencedFrameOfReferenceUID")}
        return LabelObject(
            path,
            modality,
            patient,
            frozenset(_values(_below(data), "SeriesInstanceUID")),
            images or frozenset(_values([data], "ReferencedSOPInstanceUID")),
            frozenset(frames),
            names_in(data),
            "".join(str(data.get(word, "")) for word in _made(modality)),
        )
    except (InvalidDicomError, OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise Refusal("unreadable", f"{Path(path).name} cannot be read: {error}; export it again") from error


def _made(modality: str) -> tuple[str, str]:
    return ("StructureSetDate", "StructureSetTime") if modality == "RTSTRUCT" else ("ContentDate", "ContentTime")


def names_in(data: Dataset) -> tuple[str, ...]:
    """The names of the segments of a SEG or the ROIs of an RTSTRUCT, in their order."""
    segments = [str(one.get("SegmentLabel", "")) for one in data.get("SegmentSequence") or ()]
    return tuple(segments or [str(one.get("ROIName", "")) for one in data.get("StructureSetROISequence") or ()])


def _below(data: Dataset) -> list[Dataset]:
    """The items of an object's sequences: what it refers to, not what it is."""
    return [item for element in data if element.VR == "SQ" for item in element.value]


def _values(items: Iterable[Dataset], keyword: str) -> Iterator[str]:
    """Hashes of every value of a UID in some items, whatever the depth."""
    for item in items:
        for element in item.iterall():
            if element.keyword == keyword and element.value:
                yield uid_hash(str(element.value))


def objects_among(records: Iterable[SeriesRecord]) -> list[SeriesRecord]:
    """The records of SEG and RTSTRUCT objects."""
    return [record for record in records if record.kind == "dicom" and record.modality in OBJECT_MODALITIES]


def is_object(path: Path) -> bool:
    """Whether a file is a SEG or an RTSTRUCT, by its content."""
    if not path.is_file() or not may_be_dicom(path):
        return False
    header = _header(str(path))
    return header is not None and header.modality in OBJECT_MODALITIES


@lru_cache(maxsize=4096)
def _header(path: str) -> Header | None:
    return read_header(path)


def series_of(one: LabelObject, usable: Sequence[SeriesRecord], refused: Sequence[SeriesRecord]) -> SeriesRecord | str:
    """The series that an object belongs to, or why there is none or more than one.

    By the series it names; where that is not there, by the images it names (a series that was sent on under another
    UID); where it names none of them, by the frame of reference, if one series alone of its patient has it.
    """
    found = [record for record in usable if record.series_uid_hash in one.series]
    if not found and one.instances:
        found = [record for record in usable if record.kind == "dicom" and _instances(record) & one.instances]
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


def _frame(record: SeriesRecord) -> str:
    header = _header(record.files[0]) if record.kind == "dicom" and "!/" not in record.files[0] else None
    return "" if header is None else header.frame_of_reference_hash


@lru_cache(maxsize=1024)
def _instances(record: SeriesRecord) -> frozenset[str]:
    headers = (_header(file) for file in record.files if "!/" not in file)
    return frozenset(header.sop_instance_hash for header in headers if header is not None)


def person_of(record: SeriesRecord) -> str:
    """Pseudonym of the name in a series' first file, spellings of one name alike; empty where it has none."""
    header = _header(record.files[0]) if record.kind == "dicom" and "!/" not in record.files[0] else None
    return "" if header is None else header.name_hash
