"""What makes one header unusable whatever the other slices say: numbers that are none, values that nobody can read."""

from __future__ import annotations

from medseg.errors import ReasonCode
from medseg.ingest import dicom_tags as tags


def remarks_on(values: tags.Values) -> tuple[str, ...]:
    """Complaints about numbers that only confirm the geometry that the positions give."""
    complaints = (values.complaint(tag) for tag in (tags.SLICE_THICKNESS, tags.SPACING_BETWEEN_SLICES))
    return tuple(f"not used: {complaint}" for complaint in complaints if complaint)


def defect_in(values: tags.Values) -> tuple[ReasonCode | None, str]:
    """Reason code and text of what is wrong with a header; ``None`` and empty if nothing is.

    A number that is there and cannot be read is never taken as absent. In the geometry it makes the whole series
    unreadable, since nobody knows where the slice belongs.
    """
    for tag, count in ((tags.PIXEL_SPACING, 2), (tags.IMAGE_ORIENTATION, 6), (tags.NUMBER_OF_FRAMES, 1)):
        if complaint := values.complaint(tag, count):
            return "unreadable", complaint
    frames = values.integer_string(tags.NUMBER_OF_FRAMES)
    if frames is not None and frames < 1:
        return "unreadable", f"Number of Frames (0028,0008) is {frames}, expected at least 1; export the files again"
    message = _rescale_defect(values) or _pixel_defect(values)
    return ("undecodable", message) if message else (None, "")


def _rescale_defect(values: tags.Values) -> str:
    """A rescale that is there must be read, or the values are in no unit (PS3.3 C.11.1): half of one is none."""
    if values.has(tags.MODALITY_LUT):
        return "values go through a Modality LUT Sequence (0028,3000), expected a linear rescale"
    for tag in (tags.RESCALE_SLOPE, tags.RESCALE_INTERCEPT):
        if complaint := values.complaint(tag, may_be_empty=False):
            return complaint
    if values.has(tags.RESCALE_SLOPE) != values.has(tags.RESCALE_INTERCEPT):
        return (
            "only one of Rescale Slope (0028,1053) and Rescale Intercept (0028,1052) is there, expected both or none; "
            "export the files again"
        )
    if values.number(tags.RESCALE_SLOPE) == 0:
        return "Rescale Slope (0028,1053) is 0, so that every pixel has the same value"
    return ""


def _pixel_defect(values: tags.Values) -> str:
    """Attributes of type 1 without which bits are no values (PS3.3 C.7.6.3)."""
    stored, high = values.integer(tags.BITS_STORED), values.integer(tags.HIGH_BIT)
    if not stored:
        return (
            "Bits Stored (0028,0101) is absent, so that nobody knows which bits are the value; export the files again"
        )
    if high is not None and high != stored - 1:
        return f"High Bit (0028,0102) is {high}, expected {stored - 1} for {stored} bits stored"
    representation = values.integer(tags.PIXEL_REPRESENTATION)
    if representation not in (0, 1):
        found = "absent" if representation is None else str(representation)
        return (
            f"Pixel Representation (0028,0103) is {found}, expected 0 (unsigned) or 1 (signed): a value may be off by "
            "65536; export the files again"
        )
    return ""
