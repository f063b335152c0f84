"""The DICOM attributes that are read, and how their raw values are understood (PS3.5 section 6.2, PS3.6)."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from medseg.errors import ReasonCode

MEDIA_SOP_CLASS_UID: Final = 0x00020002
DIRECTORY_RECORDS: Final = 0x00041220
SPECIFIC_CHARACTER_SET: Final = 0x00080005
IMAGE_TYPE: Final = 0x00080008
SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
ACQUISITION_TIME: Final = 0x00080032
CONTENT_TIME: Final = 0x00080033
MODALITY: Final = 0x00080060
SERIES_DESCRIPTION: Final = 0x0008103E
PATIENT_NAME: Final = 0x00100010
PATIENT_ID: Final = 0x00100020
PATIENT_BIRTH_DATE: Final = 0x00100030
CONTRAST_AGENT: Final = 0x00180010
SLICE_THICKNESS: Final = 0x00180050
SPACING_BETWEEN_SLICES: Final = 0x00180088
STUDY_INSTANCE_UID: Final = 0x0020000D
SERIES_INSTANCE_UID: Final = 0x0020000E
SERIES_NUMBER: Final = 0x00200011
INSTANCE_NUMBER: Final = 0x00200013
IMAGE_POSITION: Final = 0x00200032
IMAGE_ORIENTATION: Final = 0x00200037
FRAME_OF_REFERENCE_UID: Final = 0x00200052
CONCATENATION_UID: Final = 0x00209161
IN_CONCATENATION_NUMBER: Final = 0x00209162
IN_CONCATENATION_TOTAL: Final = 0x00209163
CONCATENATION_OFFSET: Final = 0x00209228
SAMPLES_PER_PIXEL: Final = 0x00280002
PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
NUMBER_OF_FRAMES: Final = 0x00280008
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
PIXEL_SPACING: Final = 0x00280030
BITS_ALLOCATED: Final = 0x00280100
BITS_STORED: Final = 0x00280101
HIGH_BIT: Final = 0x00280102
PIXEL_REPRESENTATION: Final = 0x00280103
PIXEL_PADDING_VALUE: Final = 0x00280120
PIXEL_PADDING_LIMIT: Final = 0x00280121
RESCALE_INTERCEPT: Final = 0x00281052
RESCALE_SLOPE: Final = 0x00281053
RESCALE_TYPE: Final = 0x00281054
MODALITY_LUT: Final = 0x00283000

_NAMED: Final = frozenset(tag for name, tag in globals().items() if name.isupper() and isinstance(tag, int))

ATTRIBUTES: Final[Mapping[int, str]] = {
    0x00080022: "acquisition date",
    ACQUISITION_TIME: "acquisition time",
    CONTENT_TIME: "content time",
    0x00089208: "complex component",
    CONTRAST_AGENT: "contrast agent",
    0x00180020: "scanning sequence",
    0x00180024: "sequence name",
    0x00180060: "tube voltage",
    0x00180080: "repetition time",
    0x00180081: "echo time",
    0x00180082: "inversion time",
    0x00180086: "echo number",
    0x00181060: "trigger time",
    0x00181210: "convolution kernel",
    0x00181242: "frame duration",
    0x00181314: "flip angle",
    0x00189087: "b-value",
    0x00189089: "gradient direction",
    0x0019100C: "b-value (Siemens)",
    0x0019100E: "gradient direction (Siemens)",
    0x20011003: "b-value (Philips)",
    0x20051011: "image type (Philips)",
    0x00200012: "acquisition number",
    0x00200100: "temporal position",
    0x00209128: "temporal position index",
    0x00209056: "stack",
    0x00209153: "trigger delay",
    0x00209241: "cardiac phase",
    0x00280051: "corrections",
    RESCALE_TYPE: "rescale type",
    0x0043102F: "image type (GE)",
    0x00431039: "b-value (GE)",
    0x00540012: "energy window",
    0x00541001: "units",
    0x00541300: "frame reference time",
    0x00651009: "b-value (UIH)",
}
"""Names of what of the acquisition tells images apart, by tag. Times are never shown."""

READ: Final = _NAMED | frozenset(ATTRIBUTES)
"""The tags of all elements that are read: those named above, and the attributes."""

SPLITTING_ATTRIBUTES: Final = (
    *("stack", "image type", "image type (GE)", "image type (Philips)", "complex component"),
    *("echo number", "echo time", "inversion time"),
    *("b-value", "b-value (Siemens)", "b-value (GE)", "b-value (Philips)", "b-value (UIH)"),
    *("gradient direction", "gradient direction (Siemens)", "temporal position", "temporal position index"),
    *("frame reference time", "cardiac phase", "trigger delay", "trigger time", "acquisition number", "flip angle"),
    *("repetition time", "scanning sequence", "sequence name", "tube voltage", "convolution kernel", "contrast agent"),
    *("corrections", "units", "energy window", "frame duration", "acquisition time", "content time"),
)
"""In which order they are tried when images of one series lie at the same place."""

_BINARY: Final = {
    **dict.fromkeys((0x00189087, 0x00189089, 0x0019100E, 0x00209153, 0x00651009), "d"),
    **dict.fromkeys((0x20011003, 0x00209241), "f"),
    0x00209128: "I",
    0x0043102F: "h",
}
"""Attributes that are binary numbers, with their types as :mod:`struct` writes them."""
_SEQUENCES: Final = frozenset((0x00540012,))

_NAMES: Final = {
    SLICE_THICKNESS: "Slice Thickness (0018,0050)",
    SPACING_BETWEEN_SLICES: "Spacing Between Slices (0018,0088)",
    IMAGE_POSITION: "Image Position (0020,0032)",
    IMAGE_ORIENTATION: "Image Orientation (0020,0037)",
    NUMBER_OF_FRAMES: "Number of Frames (0028,0008)",
    PIXEL_SPACING: "Pixel Spacing (0028,0030)",
    RESCALE_INTERCEPT: "Rescale Intercept (0028,1052)",
    RESCALE_SLOPE: "Rescale Slope (0028,1053)",
}
_EXACT: Final = 17
"""Decimals taken for a number in exponent notation, more than any writer gives."""

DIRECTORY_CLASS: Final = "1.2.840.10008.1.3.10"
_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_NOT_IMAGES: Final = (
    *("4.2", "4.4.1"),  # MR spectroscopy
    *("9.", "11.", "30", "34", "66", "67", "68.", "78.", "79.", "80.", "88.", "90.", "104.", "131", "200.", "201."),
    *("481.2", "481.3", "481.4", "481.5", "481.6", "481.7", "481.8", "481.9"),
    *(f"481.{number}" for number in range(10, 26)),
)
"""Waveforms, presentation states, parametric maps, segmentations, raw data, registrations, measurements, reports,
encapsulated documents, implementation plans, and the radiotherapy objects except RT Image (PS3.4 annex B.5)."""

_PROJECTIONS: Final = ("1", "3.1", "6.1", "7", "12", "77", "481.1")
"""Radiographs, ultrasound, secondary captures, angiography and fluoroscopy, visible light, RT Image."""


@lru_cache(maxsize=256)
def is_image_class(sop_class_uid: str) -> bool:
    """Whether a SOP class stores images; unknown and private storage classes count as images, a directory does not."""
    if not sop_class_uid.startswith(_STORAGE):
        return sop_class_uid != DIRECTORY_CLASS
    return not is_one_of(sop_class_uid, _NOT_IMAGES)


@lru_cache(maxsize=256)
def is_projection_class(sop_class_uid: str) -> bool:
    """Whether a SOP class stores pictures that need have no place in the patient, such as secondary captures."""
    return is_one_of(sop_class_uid, _PROJECTIONS)


def is_standard_class(sop_class_uid: str) -> bool:
    """Whether a SOP class is one of the standard's storage classes, and not private or absent."""
    return sop_class_uid.startswith(_STORAGE)


def is_one_of(sop_class_uid: str, names: tuple[str, ...]) -> bool:
    """Whether a SOP class is one of the standard's, named by what follows their common root, or a part of one."""
    if not sop_class_uid.startswith(_STORAGE):
        return False
    rest = sop_class_uid.removeprefix(_STORAGE)
    return any(rest == name.rstrip(".") or rest.startswith(name.rstrip(".") + ".") for name in names)


def numbers_of(text: str) -> tuple[float, ...] | None:
    """Decimal strings (PS3.5 section 6.2, DS); ``None`` if any is not a finite number."""
    if "_" in text:  # Python would read 1_0 as 10
        return None
    try:
        found = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return None
    return found if all(math.isfinite(number) for number in found) else None


def complaint_about(tag: int, text: str, count: int) -> str:
    """What is wrong with the value of an element that should hold ``count`` decimal strings; empty if nothing is."""
    found = numbers_of(text)
    if found is not None and len(found) == count:
        return ""
    if not text:
        what = "empty"
    elif set(text) <= set("0123456789+-.,;eE\\ NaInfityd_"):
        what = f"{text[:48]!r}" + (" (a decimal comma)" if "," in text else "")
    else:
        what = "some text"
    expected = f"{count} finite numbers" if count > 1 else "a finite number"
    return f"{_NAMES[tag]} is {what}, expected {expected} with a decimal point; correct or export the files again"


def decimals_of(text: str) -> tuple[int, ...]:
    """How many digits stand behind the decimal point of each number, as written."""
    return tuple(_EXACT if "e" in part.lower() else len(part.strip().partition(".")[2]) for part in text.split("\\"))


class DecodedValues:
    """Raw element values, read as the types that their value representations say."""

    def __init__(self, raw: Mapping[int, bytes], byte_order: str) -> None:
        self._raw = raw
        self._order = byte_order

    def __contains__(self, tag: int) -> bool:
        """Whether the element is present, even if empty."""
        return tag in self._raw

    def text(self, tag: int) -> str:
        """A string without padding; empty if absent."""
        return self._raw.get(tag, b"").decode("latin-1").strip("\0 ")

    def decoded(self, tag: int) -> str:
        """A string in the data set's character set, with control characters removed."""
        utf8 = "192" in self.text(SPECIFIC_CHARACTER_SET)
        text = self._raw.get(tag, b"").decode("utf-8" if utf8 else "latin-1", "replace")
        return "".join(c for c in text.strip("\0 ") if c.isprintable())

    def integer(self, tag: int) -> int | None:
        """An unsigned binary integer of 2 or 4 bytes; ``None`` if absent."""
        raw = self._raw.get(tag, b"")
        return int.from_bytes(raw, "little" if self._order == "<" else "big") if len(raw) in (2, 4) else None

    def integer_string(self, tag: int) -> int | None:
        """An integer written as text; ``None`` if absent or not a number."""
        try:
            return int(self.text(tag))
        except ValueError:
            return None

    def complaint(self, tag: int, count: int = 1, *, may_be_empty: bool = True) -> str:
        """What is wrong with the decimal strings of an element that is present; empty if it is absent or sound."""
        text = self.text(tag)
        if tag not in self._raw or (may_be_empty and not text):
            return ""
        return complaint_about(tag, text, count)

    def number(self, tag: int) -> float | None:
        """The first of some decimal strings."""
        found = numbers_of(self.text(tag))
        return found[0] if found else None

    def vector(self, tag: int, length: int) -> tuple[float, ...] | None:
        """Exactly ``length`` decimal strings; ``None`` otherwise."""
        found = numbers_of(self.text(tag))
        return found if found is not None and len(found) == length else None

    def padding(self, signed: bool) -> tuple[int, ...]:
        """Pixel padding value and range limit, as far as present."""
        raw = (self._raw.get(tag, b"") for tag in (PIXEL_PADDING_VALUE, PIXEL_PADDING_LIMIT))
        kind = self._order + ("h" if signed else "H")
        return tuple(int(struct.unpack(kind, value)[0]) for value in raw if len(value) == 2)

    def attribute(self, tag: int) -> str:
        """One of :data:`ATTRIBUTES` as text, whatever its type; numbers in their shortest form."""
        raw = self._raw.get(tag, b"")
        if tag in _SEQUENCES:
            return f"{zlib.crc32(raw):08x}" if raw else ""
        kind = _BINARY.get(tag)
        if kind is None:
            return _shortest(self.text(tag))
        size = struct.calcsize(kind)
        count = len(raw) // size
        return "\\".join(f"{value:g}" for value in struct.unpack(f"{self._order}{count}{kind}", raw[: count * size]))


@lru_cache(maxsize=8192)
def _shortest(text: str) -> str:
    """Numbers in their shortest form; other text without control characters. Most slices of a series repeat it."""
    try:
        return "\\".join(f"{float(part):.10g}" for part in text.split("\\")) if text else ""
    except ValueError:
        return "".join(c for c in text if c.isprintable())


def remarks_on(values: DecodedValues) -> tuple[str, ...]:
    """Complaints about numbers that only confirm the geometry that the positions give."""
    complaints = (values.complaint(tag) for tag in (SLICE_THICKNESS, SPACING_BETWEEN_SLICES))
    return tuple(f"not used: {complaint}" for complaint in complaints if complaint)


def defect_in(values: DecodedValues) -> tuple[ReasonCode | None, str]:
    """Reason code and text of what is wrong with a header; ``None`` and empty if nothing is.

    A number that is there and cannot be read is never taken as absent. In the geometry it makes the whole series
    unreadable, since nobody knows where the slice belongs.
    """
    for tag, count in ((PIXEL_SPACING, 2), (IMAGE_ORIENTATION, 6), (NUMBER_OF_FRAMES, 1)):
        if complaint := values.complaint(tag, count):
            return "unreadable", complaint
    frames = values.integer_string(NUMBER_OF_FRAMES)
    if frames is not None and frames < 1:
        return "unreadable", f"Number of Frames (0028,0008) is {frames}, expected at least 1; export the files again"
    message = _rescale_defect(values) or _pixel_defect(values)
    return ("undecodable", message) if message else (None, "")


def _rescale_defect(values: DecodedValues) -> str:
    """A rescale that is there must be read, or the values are in no unit (PS3.3 C.11.1): half of one is none."""
    if MODALITY_LUT in values:
        return "values go through a Modality LUT Sequence (0028,3000), expected a linear rescale"
    for tag in (RESCALE_SLOPE, RESCALE_INTERCEPT):
        if complaint := values.complaint(tag, may_be_empty=False):
            return complaint
    if (RESCALE_SLOPE in values) != (RESCALE_INTERCEPT in values):
        return (
            "only one of Rescale Slope (0028,1053) and Rescale Intercept (0028,1052) is there, expected both or none; "
            "export the files again"
        )
    if values.number(RESCALE_SLOPE) == 0:
        return "Rescale Slope (0028,1053) is 0, so that every pixel has the same value"
    return ""


def _pixel_defect(values: DecodedValues) -> str:
    """Attributes of type 1 without which bits are no values (PS3.3 C.7.6.3)."""
    stored, high = values.integer(BITS_STORED), values.integer(HIGH_BIT)
    if not stored:
        return "Bits Stored (0028,0101) is absent: nobody knows which bits are the value; export the files again"
    if high is not None and high != stored - 1:
        return f"High Bit (0028,0102) is {high}, expected {stored - 1} for {stored} bits stored"
    representation = values.integer(PIXEL_REPRESENTATION)
    if representation not in (0, 1):
        found = "absent" if representation is None else str(representation)
        return (
            f"Pixel Representation (0028,0103) is {found}, expected 0 (unsigned) or 1 (signed): a value may be off by "
            "65536; export the files again"
        )
    return ""
