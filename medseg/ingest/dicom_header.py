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
from medseg.ingest.dicom_elements import DEFLATED, Elements, open_file, read_elements
from medseg.ingest.multiframe import Concatenation, Frame, Vector, read_frames
from medseg.ingest.pseudonyms import pseudonym, uid_hash

BROKEN: Final = ("truncated", "unreadable")
"""Defects that hide which stack a slice belongs to: its whole series is refused."""

_OWN_ATTRIBUTES: Final = {tag: tags.ATTRIBUTES[tag] for tag in (tags.ACQUISITION_TIME, tags.CONTENT_TIME)}
_COMMON_ATTRIBUTES: Final = {tag: name for tag, name in tags.ATTRIBUTES.items() if tag not in _OWN_ATTRIBUTES}
_COMMON_TAGS: Final = tuple(
    sorted(tags.READ - _OWN_ATTRIBUTES.keys() - {tags.SOP_INSTANCE_UID, tags.INSTANCE_NUMBER, tags.IMAGE_POSITION})
)
"""What differs between the slices of most series is left out."""

_UID: Final = re.compile(r"[0-9][0-9.]{3,63}")
_LONGEST_PADDING: Final = 64 * 1024
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Header(NamedTuple):
    """The header of one DICOM file, or of one frame of it.

    A named tuple and no dataclass, since a scan makes, writes and reads one for every file. Hashes of UIDs are SHA-256,
    64 hex digits, empty where the UID is absent.
    """

    series_uid_hash: str
    study_uid_hash: str
    frame_of_reference_hash: str
    patient_hash: str  # keyed, of the patient id (of name and birth date where the id is absent), for grouping
    id_hash: str
    name_hash: str
    """Keyed, of the patient id alone and of the name alone, as far as spellings of one name are alike."""
    sop_class_uid: str
    modality: str
    description: str
    series_number: int | None
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    pixel_spacing: Vector | None  # distance between rows, then between columns, in mm
    orientation: Vector | None  # ImageOrientationPatient: direction cosines in DICOM's LPS frame
    slice_thickness_mm: float | None
    spacing_between_slices_mm: float | None
    rescale: tuple[float, float] | None  # slope and intercept to modality units
    padding: tuple[int, ...]  # PixelPaddingValue and PixelPaddingRangeLimit where present
    image_type: tuple[str, ...]
    attributes: dict[str, str]
    """What of the acquisition may tell apart images at one place (see ``dicom_tags.SPLITTING_ATTRIBUTES``)."""
    contrast_agent: bool
    number_of_frames: int
    path: str = ""
    size: int = 0
    sop_instance_hash: str = ""
    instance_number: int | None = None
    position: Vector | None = None  # ImagePositionPatient in mm, LPS
    position_decimals: tuple[int, ...] = ()  # digits behind the decimal point of each of its numbers, as written
    transfer_syntax: str = ""
    pixel_tag: int = 0
    pixel_offset: int = 0  # where the pixel data begin
    pixel_length: int | None = None  # in bytes; None: encapsulated
    data_set_offset: int = 0
    concatenation: Concatenation | None = None
    remarks: tuple[str, ...] = ()  # what was found and could be left aside; becomes notes of the volume
    frame: int | None = None  # which frame this is; None for the whole file
    frames: tuple[Frame, ...] = ()  # of an enhanced multi-frame file
    defect: ReasonCode | None = None
    defect_message: str = ""
    """Why the header alone shows that the file cannot be used; empty otherwise."""

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return _ENCODE(self)

    @classmethod
    def from_json(cls, text: str) -> Header:
        """The record that :meth:`to_json` wrote."""
        header = cls._make(map(_tuple, json.loads(text)))
        if header.concatenation is not None:
            header = header._replace(concatenation=Concatenation(*header.concatenation))
        if not header.frames:
            return header
        return header._replace(frames=tuple(Frame(*map(_tuple, frame)) for frame in header.frames))

    def per_frame(self) -> tuple[Header, ...]:
        """One header for each frame of an enhanced multi-frame file; the header itself for a classic file."""
        return tuple(
            self._replace(
                frame=index, frames=(), **frame._asdict() | {"attributes": self.attributes | frame.attributes}
            )
            for index, frame in enumerate(self.frames)
        ) or (self,)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def stored_range(self) -> tuple[int, int]:
        """The smallest and the largest number that the stored bits hold."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def has_sound_bits(self) -> bool:
        """Whether the pixels are integers of a size that is read."""
        return self.bits_allocated in (8, 16, 32) and 0 < self.bits_stored <= self.bits_allocated

    @property
    def needed_bytes(self) -> int:
        """Bytes of uncompressed pixel data that the header describes."""
        pixels = self.rows * self.columns * self.samples_per_pixel * self.number_of_frames
        return pixels * self.bits_allocated // 8

    @property
    def available_bytes(self) -> int:
        """Bytes of native pixel data, not more than the file has; of a deflated file as its data set declares."""
        declared = self.pixel_length or 0
        return declared if self.transfer_syntax == DEFLATED else min(declared, self.size - self.pixel_offset)

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
    return tuple(value) if type(value) is list else value


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """Read one file's header; ``None`` if the file is not DICOM.

    A header that is damaged but recognisable as DICOM comes back with ``defect`` set. A file that cannot be opened is
    an OSError; pipes and devices are never opened.
    """
    elements = read_elements(path, tags.READ)
    if elements is None:
        return None
    values = tags.DecodedValues(elements.values, elements.byte_order)
    if not _is_dicom(elements, values):
        return None
    header = _header(os.fspath(path), elements, values)
    if elements.has_functional_groups and header.is_image and header.defect is None:
        frames, defect, message = read_frames(elements, header.number_of_frames, header.rescale)
        header = header._replace(frames=frames, defect=defect, defect_message=message)
    if header.defect is None and header.is_image and (message := _excess_of(header)):
        header = header._replace(defect="unreadable", defect_message=message)
    return header


def _is_dicom(elements: Elements, values: tags.DecodedValues) -> bool:
    """Without file meta information only a SOP class proves it: other files may begin with the same few bytes."""
    if tags.DIRECTORY_RECORDS in values or _UID.fullmatch(values.text(tags.SOP_CLASS_UID)):
        return True
    return elements.has_meta and bool(_UID.fullmatch(elements.transfer_syntax))


def _header(path: str, elements: Elements, values: tags.DecodedValues) -> Header:
    common = _common(tuple(map(elements.values.get, _COMMON_TAGS)), elements.byte_order)
    header = common._replace(
        path=path,
        size=elements.file_size,
        sop_instance_hash=uid_hash(values.text(tags.SOP_INSTANCE_UID)),
        instance_number=values.integer_string(tags.INSTANCE_NUMBER),
        position=values.vector(tags.IMAGE_POSITION, 3),
        position_decimals=tags.decimals_of(values.text(tags.IMAGE_POSITION)),
        attributes=common.attributes | _attributes(values, _OWN_ATTRIBUTES),
        transfer_syntax=elements.transfer_syntax,
        pixel_tag=elements.pixel_tag,
        pixel_offset=elements.pixel_offset,
        pixel_length=elements.pixel_length,
        data_set_offset=elements.data_set_offset,
    )
    if elements.truncated:
        message = "the file ends inside its header; copy it again from its source"
        return header._replace(defect="truncated", defect_message=message)
    if elements.malformed:
        message = f"the header cannot be parsed ({elements.malformed}); copy the file again from its source"
    else:
        message = values.complaint(tags.IMAGE_POSITION, 3)
    return header._replace(defect="unreadable", defect_message=message) if message else header


@lru_cache(maxsize=128)
def _common(raw: tuple[bytes | None, ...], byte_order: str) -> Header:
    """What the slices of a series have in common; the rest is left empty. Only its first slice pays for it."""
    values = tags.DecodedValues(
        {tag: value for tag, value in zip(_COMMON_TAGS, raw, strict=True) if value is not None}, byte_order
    )
    identity = values.text(tags.PATIENT_ID)
    name = _plain_name(values.text(tags.PATIENT_NAME))
    defect, message = tags.defect_in(values)
    signed = values.integer(tags.PIXEL_REPRESENTATION) == 1
    image_type = tuple(part.strip() for part in values.text(tags.IMAGE_TYPE).split("\\") if part.strip())
    attributes = _attributes(values, _COMMON_ATTRIBUTES)
    return Header(
        series_uid_hash=uid_hash(values.text(tags.SERIES_INSTANCE_UID)),
        study_uid_hash=uid_hash(values.text(tags.STUDY_INSTANCE_UID)),
        frame_of_reference_hash=uid_hash(values.text(tags.FRAME_OF_REFERENCE_UID)),
        patient_hash=pseudonym(identity or f"{name}{values.text(tags.PATIENT_BIRTH_DATE)}"),
        id_hash=pseudonym(identity and f"id {identity}"),
        name_hash=pseudonym(name and f"name {name}"),
        sop_class_uid=_sop_class(values),
        modality=values.text(tags.MODALITY),
        description=values.decoded(tags.SERIES_DESCRIPTION),
        series_number=values.integer_string(tags.SERIES_NUMBER),
        rows=values.integer(tags.ROWS) or 0,
        columns=values.integer(tags.COLUMNS) or 0,
        samples_per_pixel=values.integer(tags.SAMPLES_PER_PIXEL) or 1,
        bits_allocated=values.integer(tags.BITS_ALLOCATED) or 0,
        bits_stored=values.integer(tags.BITS_STORED) or values.integer(tags.BITS_ALLOCATED) or 0,
        signed=signed,
        photometric=values.text(tags.PHOTOMETRIC_INTERPRETATION),
        pixel_spacing=values.vector(tags.PIXEL_SPACING, 2),
        orientation=values.vector(tags.IMAGE_ORIENTATION, 6),
        slice_thickness_mm=values.number(tags.SLICE_THICKNESS),
        spacing_between_slices_mm=values.number(tags.SPACING_BETWEEN_SLICES),
        rescale=_rescale(values),
        padding=values.padding(signed),
        image_type=image_type,
        attributes=attributes | {"image type": "\\".join(image_type)} if image_type else attributes,
        contrast_agent=bool(values.text(tags.CONTRAST_AGENT)),
        number_of_frames=values.integer_string(tags.NUMBER_OF_FRAMES) or 1,
        concatenation=_concatenation(values),
        remarks=tags.remarks_on(values),
        defect=defect,
        defect_message=message,
    )


def _sop_class(values: tags.DecodedValues) -> str:
    """The data set's own class; a directory names its class in the file meta information only (PS3.10 section 8.6)."""
    if tags.DIRECTORY_RECORDS in values:
        return tags.DIRECTORY_CLASS
    return values.text(tags.SOP_CLASS_UID) or values.text(tags.MEDIA_SOP_CLASS_UID)


def _plain_name(name: str) -> str:
    """The alphabetic group of a name (PS3.5 section 6.2.1) without the marks and blanks in which spellings differ."""
    return " ".join(name.partition("=")[0].replace("^", " ").replace(",", " ").casefold().split())


def _concatenation(values: tags.DecodedValues) -> Concatenation | None:
    uid, total = values.text(tags.CONCATENATION_UID), values.integer(tags.IN_CONCATENATION_TOTAL)
    number, offset = values.integer(tags.IN_CONCATENATION_NUMBER), values.integer(tags.CONCATENATION_OFFSET)
    if not uid and (total or 1) < 2 and (number or 1) < 2 and not offset:
        return None
    return Concatenation(uid_hash(uid), number, total, offset)


def _rescale(values: tags.DecodedValues) -> tuple[float, float] | None:
    slope, intercept = values.number(tags.RESCALE_SLOPE), values.number(tags.RESCALE_INTERCEPT)
    return None if slope is None or intercept is None else (slope, intercept)


def _attributes(values: tags.DecodedValues, names: Mapping[int, str]) -> dict[str, str]:
    return {name: text for tag, name in names.items() if tag in values and (text := values.attribute(tag))}


def _excess_of(header: Header) -> str:
    """What contradicts the header in native pixel data that are longer than it says; empty if nothing does.

    One byte makes the length even (PS3.5 section 8.1.1). Older writers fill up to blocks of some hundred bytes with one
    byte; more, or bytes that differ, are pixels that the header does not know of: rows, frames, samples or bits.
    """
    if header.pixel_length is None or not header.pixel_tag or not header.has_sound_bits or min(header.grid) < 1:
        return ""
    needed = header.needed_bytes
    excess = header.available_bytes - needed
    if excess <= 1 or (excess <= _LONGEST_PADDING and excess % needed and _is_filling(header, needed, excess)):
        return ""
    return (
        f"Pixel Data has {needed + excess} bytes where {header.rows}×{header.columns}×{header.number_of_frames} pixels "
        f"of {header.bits_allocated} bits need {needed}: the header contradicts its pixels; export the file again"
    )


def _is_filling(header: Header, needed: int, excess: int) -> bool:
    if header.transfer_syntax == DEFLATED:
        return True  # what lies behind the pixels is never inflated
    with open_file(header.path) as handle:
        handle.seek(header.pixel_offset + needed)
        return len(set(handle.read(excess) or b"")) <= 1
