"""One DICOM file's header as a plain record: everything that grouping, splitting and reading need, and no identity.

Patient and UIDs are kept as hashes only (:mod:`medseg.ingest.pseudonyms`). The one date read, of the acquisition,
serves to order images and is never shown; the index shifts it before it stores a header. The record is plain data
(``to_json``, ``from_json``), so that an index can store it and judge a series again without reading its files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from medseg.errors import ReasonCode
from medseg.ingest import tags
from medseg.ingest.elements import Elements, read_elements
from medseg.ingest.pseudonyms import pseudonym, uid_hash

__all__ = ["Frame", "Header", "read_header"]

Vector = tuple[float, ...]

_OWN_FACTS: Final = {tag: tags.FACT_TAGS[tag] for tag in (tags.ACQUISITION_TIME, tags.CONTENT_TIME)}
_COMMON_FACTS: Final = {tag: name for tag, name in tags.FACT_TAGS.items() if tag not in _OWN_FACTS}
_COMMON_TAGS: Final = tuple(
    sorted(tags.WANTED - _OWN_FACTS.keys() - {tags.SOP_INSTANCE_UID, tags.INSTANCE_NUMBER, tags.IMAGE_POSITION})
)
"""What differs between the slices of most series is left out."""

_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Frame(NamedTuple):
    """What one frame of an enhanced multi-frame object says of itself (DICOM PS3.3 C.7.6.16)."""

    position: Vector | None
    orientation: Vector | None
    pixel_spacing: Vector | None
    slice_thickness_mm: float | None
    rescale: tuple[float, float] | None
    facts: dict[str, str]


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
    person_hash
        Keyed hash of patient id and name together: differs if either differs.
    pixel_spacing
        Distance between rows, then between columns, in mm.
    position, orientation
        ImagePositionPatient and ImageOrientationPatient: mm and direction cosines in DICOM's LPS frame.
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
    person_hash: str
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
    def is_image(self) -> bool:
        """Whether the SOP class stores images (and not a segmentation, a report, a contour set or a directory)."""
        return tags.is_image_class(self.sop_class_uid)


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
    if not values.text(tags.SOP_CLASS_UID) and not found.transfer_syntax.startswith("1.2.840.10008."):
        return None
    header = _header(os.fspath(path), found, values)
    if found.has_functional_groups and header.is_image and header.defect is None:
        from medseg.ingest.multiframe import read_frames  # pydicom is imported for these files only

        header = read_frames(header, found)
    return header


def _header(path: str, found: Elements, values: tags.Values) -> Header:
    common = _common(tuple(map(found.values.get, _COMMON_TAGS)), found.byte_order)
    header = common._replace(
        path=path,
        size=found.file_size,
        sop_instance_hash=uid_hash(values.text(tags.SOP_INSTANCE_UID)),
        instance_number=values.integer_string(tags.INSTANCE_NUMBER),
        position=values.vector(tags.IMAGE_POSITION, 3),
        facts=common.facts | _facts(values, _OWN_FACTS),
        transfer_syntax=found.transfer_syntax,
        pixel_tag=found.pixel_tag,
        pixel_offset=found.pixel_offset,
        pixel_length=found.pixel_length,
        data_set_offset=found.data_set_offset,
    )
    if not (found.truncated or found.malformed):
        return header
    defect, message = _broken(found)
    return header._replace(defect=defect, defect_message=message)


@lru_cache(maxsize=128)
def _common(raw: tuple[bytes | None, ...], byte_order: str) -> Header:
    """What the slices of a series have in common; the rest is left empty. Only its first slice pays for it."""
    values = tags.Values(
        {tag: value for tag, value in zip(_COMMON_TAGS, raw, strict=True) if value is not None}, byte_order
    )
    identity = values.text(tags.PATIENT_ID)
    name = values.text(tags.PATIENT_NAME).upper().strip("^ ")
    defect, message = _defect(values)
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
        person_hash=pseudonym(f"{identity}|{name}"),
        sop_class_uid=values.text(tags.SOP_CLASS_UID) or values.text(tags.MEDIA_SOP_CLASS_UID),
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
        defect=defect,
        defect_message=message,
    )


def _rescale(values: tags.Values) -> tuple[float, float] | None:
    slope, intercept = values.number(tags.RESCALE_SLOPE), values.number(tags.RESCALE_INTERCEPT)
    if slope is None and intercept is None:
        return None
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def _facts(values: tags.Values, wanted: Mapping[int, str]) -> dict[str, str]:
    facts = {name: values.fact(tag) for tag, name in wanted.items() if tag in values}
    return {name: value for name, value in facts.items() if value}


def _broken(found: Elements) -> tuple[ReasonCode, str]:
    if found.truncated:
        return "truncated", "the file ends inside its header; copy it again from its source"
    return "unreadable", f"the header cannot be parsed ({found.malformed}); copy the file again from its source"


def _defect(values: tags.Values) -> tuple[ReasonCode | None, str]:
    if values.has(tags.MODALITY_LUT):
        return "undecodable", "values go through a Modality LUT Sequence (0028,3000), expected a linear rescale"
    stored, high = values.integer(tags.BITS_STORED), values.integer(tags.HIGH_BIT)
    if stored and high is not None and high != stored - 1:
        return "undecodable", f"High Bit (0028,0102) is {high}, expected {stored - 1} for {stored} bits stored"
    if values.number(tags.RESCALE_SLOPE) == 0:
        return "undecodable", "Rescale Slope (0028,1053) is 0, so that every pixel has the same value"
    return None, ""
