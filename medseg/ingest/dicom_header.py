"""One DICOM file's header as a plain record: everything that grouping, splitting and reading need, and no identity.

Patient and UIDs are kept as hashes only (:mod:`medseg.ingest.pseudonyms`). The one date read, of the acquisition,
serves to order images and is never shown; the index shifts it before it stores a header. The record is plain data
(``to_json``, ``from_json``), so that an index can store it and judge a series again without reading its files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from medseg.errors import ReasonCode
from medseg.ingest import dicom_tags as tags
from medseg.ingest.dicom_elements import Elements, read_elements
from medseg.ingest.header_defects import defect_in, remarks_on
from medseg.ingest.pixel_module import excess_of
from medseg.ingest.pseudonyms import pseudonym, uid_hash

Vector = tuple[float, ...]

BROKEN: Final = ("truncated", "unreadable")
"""Defects that hide which stack a slice belongs to: its whole series is refused."""

_OWN_FACTS: Final = {tag: tags.FACT_TAGS[tag] for tag in (tags.ACQUISITION_TIME, tags.CONTENT_TIME)}
_COMMON_FACTS: Final = {tag: name for tag, name in tags.FACT_TAGS.items() if tag not in _OWN_FACTS}
_COMMON_TAGS: Final = tuple(
    sorted(tags.WANTED - _OWN_FACTS.keys() - {tags.SOP_INSTANCE_UID, tags.INSTANCE_NUMBER, tags.IMAGE_POSITION})
)
"""What differs between the slices of most series is left out."""

_UID: Final = re.compile(r"[0-9][0-9.]{3,63}")

_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Frame(NamedTuple):
    """What one frame of an enhanced multi-frame object says of itself (DICOM PS3.3 C.7.6.16)."""

    position: Vector | None
    orientation: Vector | None
    pixel_spacing: Vector | None
    slice_thickness_mm: float | None
    rescale: tuple[float, float] | None
    facts: dict[str, str]
    position_decimals: tuple[int, ...] = ()


class Concatenation(NamedTuple):
    """Which part of a multi-frame object that was cut into several files this is (PS3.3 C.7.6.16.2.2.4)."""

    uid_hash: str
    number: int | None
    total: int | None
    offset: int | None
    """Number of frames in the parts before."""


class Header(NamedTuple):
    """The header of one DICOM file, or of one frame of it.

    A named tuple and no dataclass, since a scan makes, writes and reads one for every file.

    Attributes
    ----------
    path, size
        The file and its number of bytes.
    series_uid_hash, study_uid_hash, sop_instance_hash, frame_of_reference_hash
        SHA-256 of the UIDs, 64 hex digits; empty where the UID is absent.
    patient_hash
        Keyed hash of the patient id (of name and birth date where the id is absent), for grouping.
    id_hash, name_hash
        Keyed hashes of the patient id alone and of the name alone, as far as spellings of one name are alike; empty
        where absent.
    pixel_spacing
        Distance between rows, then between columns, in mm.
    position, orientation
        ImagePositionPatient and ImageOrientationPatient: mm and direction cosines in DICOM's LPS frame.
    position_decimals
        Digits behind the decimal point of each number of the position, as written.
    facts
        Acquisition facts by which images at one place differ (see ``tags.SPLITTING_FACTS``).
    rescale
        Slope and intercept to modality units.
    padding
        PixelPaddingValue and PixelPaddingRangeLimit where present.
    frame, frames
        Which frame this is (``None`` for the whole file), and the frames' own headers.
    number_of_frames
        As the file declares it.
    pixel_offset, pixel_length, data_set_offset
        Where the pixel data begin, their length in bytes (``None``: encapsulated), where the data set begins.
    concatenation
        For a part of a concatenation, which part it is.
    remarks
        What was found and could be left aside; becomes notes of the volume.
    defect, defect_message
        Reason code and text if the header alone shows that the file cannot be used; empty otherwise.
    """

    path: str
    size: int
    series_uid_hash: str
    study_uid_hash: str
    sop_instance_hash: str
    frame_of_reference_hash: str
    patient_hash: str
    id_hash: str
    name_hash: str
    sop_class_uid: str
    modality: str
    description: str
    series_number: int | None
    instance_number: int | None
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    pixel_spacing: Vector | None
    position: Vector | None
    position_decimals: tuple[int, ...]
    orientation: Vector | None
    slice_thickness_mm: float | None
    spacing_between_slices_mm: float | None
    rescale: tuple[float, float] | None
    padding: tuple[int, ...]
    image_type: tuple[str, ...]
    facts: dict[str, str]
    contrast_agent: bool
    number_of_frames: int
    transfer_syntax: str
    pixel_tag: int
    pixel_offset: int
    pixel_length: int | None
    data_set_offset: int
    concatenation: Concatenation | None = None
    remarks: tuple[str, ...] = ()
    frame: int | None = None
    frames: tuple[Frame, ...] = ()
    defect: ReasonCode | None = None
    defect_message: str = ""

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return _ENCODE(self)

    @classmethod
    def from_json(cls, text: str) -> Header:
        """The record that :meth:`to_json` wrote."""
        header = cls._make([tuple(value) if type(value) is list else value for value in json.loads(text)])
        if header.concatenation is not None:
            header = header._replace(concatenation=Concatenation._make(header.concatenation))
        if not header.frames:
            return header
        return header._replace(frames=tuple(Frame._make(map(_tuple, frame)) for frame in header.frames))

    def per_frame(self) -> tuple[Header, ...]:
        """One header for each frame of an enhanced multi-frame file; the header itself for a classic file."""
        return tuple(
            self._replace(
                frame=index,
                frames=(),
                position=frame.position,
                position_decimals=frame.position_decimals,
                orientation=frame.orientation,
                pixel_spacing=frame.pixel_spacing,
                slice_thickness_mm=frame.slice_thickness_mm,
                rescale=frame.rescale,
                facts=self.facts | frame.facts,
            )
            for index, frame in enumerate(self.frames)
        ) or (self,)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def is_directory(self) -> bool:
        """Whether this is a DICOMDIR, whatever its name: a list of files and no image (PS3.10 section 8)."""
        return self.sop_class_uid == tags.DIRECTORY_CLASS

    @property
    def is_image(self) -> bool:
        """Whether it stores an image, and not a segmentation, a report, a contour set or a directory.

        Objects of private and unknown classes are images if they have pixel data, or if they are broken, since then
        nobody knows.
        """
        if not tags.is_image_class(self.sop_class_uid):
            return False
        return bool(self.pixel_tag) or tags.is_standard_class(self.sop_class_uid) or self.defect in BROKEN


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """Read one file's header; ``None`` if the file is not DICOM.

    Parameters
    ----------
    path
        A regular file; pipes and devices are never opened.

    Returns
    -------
    Header or None
        A header that is damaged but recognisable as DICOM comes back with ``defect`` set.

    Raises
    ------
    OSError
        The file cannot be opened or read.
    """
    found = read_elements(path, tags.WANTED)
    if found is None:
        return None
    values = tags.Values(found.values, found.byte_order)
    if not _is_dicom(found, values):
        return None
    header = _header(os.fspath(path), found, values)
    if found.has_functional_groups and header.is_image and header.defect is None:
        from medseg.ingest.multiframe import read_frames  # pydicom is imported for these files only

        header = read_frames(header, found)
    if header.defect is None and header.is_image and (excess := excess_of(header)):
        header = header._replace(defect="unreadable", defect_message=excess)
    return header


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is DICOM by its content, whatever its name; false if it cannot be opened."""
    try:
        return read_header(path) is not None
    except OSError:
        return False


def _is_dicom(found: Elements, values: tags.Values) -> bool:
    """Without file meta information only a SOP class proves it: other files may begin with the same few bytes."""
    if values.has(tags.DIRECTORY_RECORDS) or _UID.fullmatch(values.text(tags.SOP_CLASS_UID)):
        return True
    return found.has_meta and bool(_UID.fullmatch(found.transfer_syntax))


def _header(path: str, found: Elements, values: tags.Values) -> Header:
    common = _common(tuple(map(found.values.get, _COMMON_TAGS)), found.byte_order)
    header = common._replace(
        path=path,
        size=found.file_size,
        sop_instance_hash=uid_hash(values.text(tags.SOP_INSTANCE_UID)),
        instance_number=values.integer_string(tags.INSTANCE_NUMBER),
        position=values.vector(tags.IMAGE_POSITION, 3),
        position_decimals=tags.decimals_of(values.text(tags.IMAGE_POSITION)),
        facts=common.facts | _facts(values, _OWN_FACTS),
        transfer_syntax=found.transfer_syntax,
        pixel_tag=found.pixel_tag,
        pixel_offset=found.pixel_offset,
        pixel_length=found.pixel_length,
        data_set_offset=found.data_set_offset,
    )
    if found.truncated or found.malformed:
        defect, message = _broken(found)
        return header._replace(defect=defect, defect_message=message)
    complaint = values.complaint(tags.IMAGE_POSITION, 3)
    return header._replace(defect="unreadable", defect_message=complaint) if complaint else header


@lru_cache(maxsize=128)
def _common(raw: tuple[bytes | None, ...], byte_order: str) -> Header:
    """What the slices of a series have in common; the rest is left empty. Only its first slice pays for it."""
    values = tags.Values(
        {tag: value for tag, value in zip(_COMMON_TAGS, raw, strict=True) if value is not None}, byte_order
    )
    identity = values.text(tags.PATIENT_ID)
    name = _plain_name(values.text(tags.PATIENT_NAME))
    defect, message = defect_in(values)
    signed = values.integer(tags.PIXEL_REPRESENTATION) == 1
    image_type = tuple(part.strip() for part in values.text(tags.IMAGE_TYPE).split("\\") if part.strip())
    facts = _facts(values, _COMMON_FACTS)
    return Header(
        path="",
        size=0,
        series_uid_hash=uid_hash(values.text(tags.SERIES_INSTANCE_UID)),
        study_uid_hash=uid_hash(values.text(tags.STUDY_INSTANCE_UID)),
        sop_instance_hash="",
        frame_of_reference_hash=uid_hash(values.text(tags.FRAME_OF_REFERENCE_UID)),
        patient_hash=pseudonym(identity or f"{name}{values.text(tags.PATIENT_BIRTH_DATE)}"),
        id_hash=pseudonym(identity and f"id {identity}"),
        name_hash=pseudonym(name and f"name {name}"),
        sop_class_uid=_sop_class(values),
        modality=values.text(tags.MODALITY),
        description=values.decoded(tags.SERIES_DESCRIPTION),
        series_number=values.integer_string(tags.SERIES_NUMBER),
        instance_number=None,
        rows=values.integer(tags.ROWS) or 0,
        columns=values.integer(tags.COLUMNS) or 0,
        samples_per_pixel=values.integer(tags.SAMPLES_PER_PIXEL) or 1,
        bits_allocated=values.integer(tags.BITS_ALLOCATED) or 0,
        bits_stored=values.integer(tags.BITS_STORED) or values.integer(tags.BITS_ALLOCATED) or 0,
        signed=signed,
        photometric=values.text(tags.PHOTOMETRIC_INTERPRETATION),
        pixel_spacing=values.vector(tags.PIXEL_SPACING, 2),
        position=None,
        position_decimals=(),
        orientation=values.vector(tags.IMAGE_ORIENTATION, 6),
        slice_thickness_mm=values.number(tags.SLICE_THICKNESS),
        spacing_between_slices_mm=values.number(tags.SPACING_BETWEEN_SLICES),
        rescale=_rescale(values),
        padding=values.padding(signed),
        image_type=image_type,
        facts=facts | {"image type": "\\".join(image_type)} if image_type else facts,
        contrast_agent=bool(values.text(tags.CONTRAST_AGENT)),
        number_of_frames=values.integer_string(tags.NUMBER_OF_FRAMES) or 1,
        transfer_syntax="",
        pixel_tag=0,
        pixel_offset=0,
        pixel_length=None,
        data_set_offset=0,
        concatenation=_concatenation(values),
        remarks=remarks_on(values),
        defect=defect,
        defect_message=message,
    )


def _sop_class(values: tags.Values) -> str:
    """The data set's own class; a directory names its class in the file meta information only (PS3.10 section 8.6)."""
    if values.has(tags.DIRECTORY_RECORDS):
        return tags.DIRECTORY_CLASS
    return values.text(tags.SOP_CLASS_UID) or values.text(tags.MEDIA_SOP_CLASS_UID)


def _plain_name(name: str) -> str:
    """The alphabetic group of a name (PS3.5 section 6.2.1) without the marks and blanks in which spellings differ."""
    return " ".join(name.partition("=")[0].replace("^", " ").replace(",", " ").casefold().split())


def _concatenation(values: tags.Values) -> Concatenation | None:
    uid, total = values.text(tags.CONCATENATION_UID), values.integer(tags.IN_CONCATENATION_TOTAL)
    number, offset = values.integer(tags.IN_CONCATENATION_NUMBER), values.integer(tags.CONCATENATION_OFFSET)
    if not uid and (total or 1) < 2 and (number or 1) < 2 and not offset:
        return None
    return Concatenation(uid_hash(uid), number, total, offset)


def _rescale(values: tags.Values) -> tuple[float, float] | None:
    slope, intercept = values.number(tags.RESCALE_SLOPE), values.number(tags.RESCALE_INTERCEPT)
    return None if slope is None or intercept is None else (slope, intercept)


def _facts(values: tags.Values, wanted: Mapping[int, str]) -> dict[str, str]:
    facts = {name: values.fact(tag) for tag, name in wanted.items() if tag in values}
    return {name: value for name, value in facts.items() if value}


def _broken(found: Elements) -> tuple[ReasonCode, str]:
    if found.truncated:
        return "truncated", "the file ends inside its header; copy it again from its source"
    return "unreadable", f"the header cannot be parsed ({found.malformed}); copy the file again from its source"
