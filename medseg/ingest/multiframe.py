"""The frames of an enhanced multi-frame CT, MR or PET object, and objects that were cut into several files.

Every frame says of itself where it lies (functional groups, PS3.3 C.7.6.16), so that the same rules sort, split and
judge classic and enhanced series. Of a concatenation (C.7.6.16.2.2.4) all parts are there, or the volume is refused.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Final, NamedTuple

from medseg.errors import ReasonCode, Refusal
from medseg.ingest import dicom_tags as tags
from medseg.ingest.dicom_elements import FIRST_PIXEL_TAG, Elements

Vector = tuple[float, ...]

_ATTRIBUTES: Final = (
    ("FrameContentSequence", "StackID", "stack"),
    ("FrameContentSequence", "TemporalPositionIndex", "temporal position index"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "acquisition number"),
    ("FrameContentSequence", "FrameAcquisitionDateTime", "acquisition time"),
    ("MREchoSequence", "EffectiveEchoTime", "echo time"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle", "flip angle"),
    ("MRTimingAndRelatedParametersSequence", "RepetitionTime", "repetition time"),
    ("MRDiffusionSequence", "DiffusionBValue", "b-value"),
    ("MRImageFrameTypeSequence", "FrameType", "image type"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent", "complex component"),
    ("CTImageFrameTypeSequence", "FrameType", "image type"),
    ("PETFrameTypeSequence", "FrameType", "image type"),
    ("CTXRayDetailsSequence", "KVP", "tube voltage"),
    ("CTReconstructionSequence", "ConvolutionKernel", "convolution kernel"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset", "temporal position"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "trigger time"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", "cardiac phase"),
    ("MRModifierSequence", "InversionTimes", "inversion time"),
    ("PixelValueTransformationSequence", "RescaleType", "rescale type"),
    ("ContrastBolusUsageSequence", "ContrastBolusAgentNumber", "contrast agent"),
)
_DATE_DIGITS: Final = 8


class Frame(NamedTuple):
    """What one frame says of itself, by the names of the fields of a header that it replaces."""

    position: Vector | None
    position_decimals: tuple[int, ...]
    orientation: Vector | None
    pixel_spacing: Vector | None
    slice_thickness_mm: float | None
    rescale: tuple[float, float] | None
    attributes: dict[str, str]


class Concatenation(NamedTuple):
    """Which part of an object that was cut into several files one file is; ``offset`` counts the frames before."""

    uid_hash: str
    number: int | None
    total: int | None
    offset: int | None


class _NoNumberError(Exception):
    """A decimal string of the functional groups is no number."""


def read_frames(
    elements: Elements, count: int, rescale: tuple[float, float] | None
) -> tuple[tuple[Frame, ...], ReasonCode | None, str]:
    """The frames of a file whose header declares ``count``; with reason code and text where they cannot be used.

    ``rescale`` is that of the whole file, for frames that have none of their own.
    """
    from pydicom.filereader import read_dataset  # not needed for classic files

    try:
        dataset = read_dataset(
            io.BytesIO(elements.header),
            is_implicit_VR=not elements.explicit,
            is_little_endian=elements.byte_order == "<",
            stop_when=lambda tag, _vr, _length: tag >= FIRST_PIXEL_TAG,
        )
        shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
        groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        frames = tuple(_frame(group, shared[0], rescale) for group in groups)
    except _NoNumberError as error:
        return (), "unreadable", str(error)
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds for damaged bytes; each is named in the refusal
        return (), "unreadable", f"functional groups not parsed ({type(error).__name__})"
    if len(frames) != count:
        message = f"{len(frames)} per-frame functional groups for {count} declared frames; export it again"
        return (), "missing-slices" if frames else "no-geometry", message
    return frames, None, ""


def _frame(group: Any, shared: Any, rescale: tuple[float, float] | None) -> Frame:
    def first(sequence: str) -> Any:
        for holder in (group, shared):
            items = holder.get(sequence) if holder is not None else None
            if items:
                return items[0]
        return {}

    measures, place = first("PixelMeasuresSequence"), first("PlanePositionSequence")
    thickness = _numbers(measures, tags.SLICE_THICKNESS, 1)
    return Frame(
        position=_numbers(place, tags.IMAGE_POSITION, 3),
        position_decimals=tags.decimals_of(raw_text(place, tags.IMAGE_POSITION)),
        orientation=_numbers(first("PlaneOrientationSequence"), tags.IMAGE_ORIENTATION, 6),
        pixel_spacing=_numbers(measures, tags.PIXEL_SPACING, 2),
        slice_thickness_mm=None if thickness is None else thickness[0],
        rescale=_rescale(first("PixelValueTransformationSequence")) or rescale,
        attributes=_attributes(first),
    )


def _rescale(transform: Any) -> tuple[float, float] | None:
    """The frame's own rescale; half of one is none."""
    slope = _numbers(transform, tags.RESCALE_SLOPE, 1, may_be_empty=False)
    intercept = _numbers(transform, tags.RESCALE_INTERCEPT, 1, may_be_empty=False)
    if slope is None and intercept is None:
        return None
    if slope is None or intercept is None or slope[0] == 0:
        raise _NoNumberError(
            "a frame's Rescale Slope (0028,1053) is absent or 0, or its Rescale Intercept (0028,1052) is absent; "
            "export the file again"
        )
    return slope[0], intercept[0]


def _numbers(item: Any, tag: int, count: int, *, may_be_empty: bool = True) -> tuple[float, ...] | None:
    """Decimal strings of an item; ``None`` if absent. What is there and no number is refused, not taken as absent."""
    if not item or tag not in item:
        return None
    text = raw_text(item, tag)
    if not text and may_be_empty:
        return None
    complaint = tags.complaint_about(tag, text, count)
    if complaint:
        raise _NoNumberError(f"in the functional groups: {complaint}")
    return tags.numbers_of(text)


def raw_text(item: Any, tag: int | str) -> str:
    """The text of an element of a data set as written, empty if there is none.

    pydicom raises where a number or a time is not one, and hides how many digits there were.
    """
    from pydicom.multival import MultiValue

    element = item.get_item(tag) if item and tag in item else None
    value = None if element is None else element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip("\0 ")
    parts = value if isinstance(value, MultiValue) else [] if value is None else [value]
    return "\\".join(str(part) for part in parts).strip()


def _attributes(first: Callable[[str], Any]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for sequence, keyword, name in _ATTRIBUTES:
        value = first(sequence).get(keyword)
        if value is not None and value != "":
            parts = [value] if isinstance(value, str | float | int) else list(value)
            attributes[name] = "\\".join(_text(part) for part in parts)
    if "acquisition time" in attributes:
        attributes["acquisition time"] = attributes["acquisition time"][_DATE_DIGITS:]  # of a DT value; no date is kept
    directions = first("MRDiffusionSequence").get("DiffusionGradientDirectionSequence")
    if directions:
        vector = directions[0].get("DiffusionGradientOrientation", ())
        attributes["gradient direction"] = "\\".join(_text(value) for value in vector)
    return attributes


def _text(value: Any) -> str:
    return f"{float(value):.10g}" if isinstance(value, float | int) else str(value)


def check_concatenations(parts: Iterable[tuple[Concatenation, int]]) -> tuple[str, ...]:
    """Notes on the concatenations among the files of one series, each with its number of frames.

    A missing part is refused (``missing-slices``), as far as the others tell.
    """
    objects: dict[str, list[tuple[Concatenation, int]]] = defaultdict(list)
    for part, frames in parts:
        objects[part.uid_hash].append((part, frames))
    return tuple(note for found in objects.values() for note in _check_parts(found))


def _check_parts(parts: list[tuple[Concatenation, int]]) -> tuple[str, ...]:
    totals = {part.total for part, _ in parts if part.total}
    numbers = sorted(part.number or 0 for part, _ in parts)
    total = max(totals, default=numbers[-1])
    if len(totals) > 1 or numbers != list(range(1, total + 1)) or not _join(parts):
        there = ", ".join(str(number or "?") for number in numbers)
        raise Refusal(
            "missing-slices",
            f"of a concatenation (0020,9161) the parts {there} are there, expected 1 to {total} without a gap between "
            "their frames; copy the whole series from its source",
        )
    if totals:
        return ()
    return (
        f"a concatenation of {total} parts does not say how many there are (0020,9163): a later part may be missing",
    )


def _join(parts: list[tuple[Concatenation, int]]) -> bool:
    """Whether each part begins where the one before ends, as far as the offsets (0020,9228) are given."""
    ordered = sorted(parts, key=lambda item: item[0].number or 0)
    begins = accumulate((frames for _, frames in ordered), initial=0)
    return all(part.offset in (None, begin) for (part, _), begin in zip(ordered, begins, strict=False))
