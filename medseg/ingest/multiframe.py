"""The frames of an enhanced multi-frame CT, MR or PET object, from its functional groups (PS3.3 C.7.6.16).

Every frame becomes a header of its own, so that the same rules sort, split and judge classic and enhanced series.

Multi-frame objects that were cut into several files: all parts are there, or the volume is refused.

Source: DICOM PS3.3 C.7.6.16.2.2.4 (concatenations).
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue

from medseg.errors import Refusal
from medseg.ingest import dicom_tags as tags
from medseg.ingest.dicom_elements import Elements
from medseg.ingest.dicom_header import Concatenation, Frame, Header

_FACTS = (
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

_DATE_DIGITS = 8


class _NoNumberError(Exception):
    """A decimal string of the functional groups is no number."""


def read_frames(header: Header, found: Elements) -> Header:
    """The header with its ``frames`` filled in; with ``defect`` set where the functional groups cannot be used."""
    try:
        dataset = read_dataset(
            io.BytesIO(found.header),
            is_implicit_VR=not found.explicit,
            is_little_endian=found.byte_order == "<",
            stop_when=lambda tag, _vr, _length: tag >= 0x7FE00008,
        )
        shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
        groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        frames = tuple(_frame(group, shared[0], header) for group in groups)
    except _NoNumberError as error:
        return header._replace(defect="unreadable", defect_message=str(error))
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds for damaged bytes; each is named in the refusal
        return header._replace(
            defect="unreadable", defect_message=f"functional groups not parsed ({type(error).__name__})"
        )
    if len(frames) != header.number_of_frames:
        message = (
            f"{len(frames)} per-frame functional groups for {header.number_of_frames} declared frames; export it again"
        )
        return header._replace(defect="missing-slices" if frames else "no-geometry", defect_message=message)
    return header._replace(frames=frames)


def _frame(group: Any, shared: Any, header: Header) -> Frame:
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
        orientation=_numbers(first("PlaneOrientationSequence"), tags.IMAGE_ORIENTATION, 6),
        pixel_spacing=_numbers(measures, tags.PIXEL_SPACING, 2),
        slice_thickness_mm=None if thickness is None else thickness[0],
        rescale=_rescale(first("PixelValueTransformationSequence"), header),
        facts=_facts(first),
        position_decimals=tags.decimals_of(_raw_text(place, tags.IMAGE_POSITION)),
    )


def _rescale(transform: Any, header: Header) -> tuple[float, float] | None:
    """The frame's own rescale, else that of the whole file; half of one is none."""
    slope = _numbers(transform, tags.RESCALE_SLOPE, 1, may_be_empty=False)
    intercept = _numbers(transform, tags.RESCALE_INTERCEPT, 1, may_be_empty=False)
    if slope is None and intercept is None:
        return header.rescale
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
    text = _raw_text(item, tag)
    if not text and may_be_empty:
        return None
    complaint = tags.complaint_about(tag, text, count)
    if complaint:
        raise _NoNumberError(f"in the functional groups: {complaint}")
    return tags.numbers_of(text)


def _raw_text(item: Any, tag: int) -> str:
    """The text of an element as written: pydicom's own numbers refuse some, and hide how many digits there were."""
    element = item.get_item(tag) if item and tag in item else None
    value = None if element is None else element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip("\0 ")
    parts = value if isinstance(value, MultiValue) else [] if value is None else [value]
    return "\\".join(str(part) for part in parts)


def _facts(first: Callable[[str], Any]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for sequence, keyword, name in _FACTS:
        value = first(sequence).get(keyword)
        if value is not None and value != "":
            parts = [value] if isinstance(value, str | float | int) else list(value)
            facts[name] = "\\".join(_text(part) for part in parts)
    if "acquisition time" in facts:
        facts["acquisition time"] = facts["acquisition time"][_DATE_DIGITS:]  # a DT value: the date is not kept
    directions = first("MRDiffusionSequence").get("DiffusionGradientDirectionSequence")
    if directions:
        facts["gradient direction"] = "\\".join(_text(v) for v in directions[0].get("DiffusionGradientOrientation", ()))
    return facts


def _text(value: Any) -> str:
    return f"{float(value):.10g}" if isinstance(value, float | int) else str(value)


Part = tuple[Concatenation, Header]


def check_concatenations(headers: Iterable[Header]) -> tuple[str, ...]:
    """Notes on the concatenations among the files of one series, second copies left out.

    Raises
    ------
    Refusal
        ``missing-slices`` if a part is not there, as far as the others tell.
    """
    found: dict[str, list[Part]] = defaultdict(list)
    for header in headers:
        if header.concatenation is not None:
            found[header.concatenation.uid_hash].append((header.concatenation, header))
    return tuple(note for parts in found.values() for note in _judged(parts))


def _judged(parts: list[Part]) -> tuple[str, ...]:
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


def _join(parts: Sequence[Part]) -> bool:
    """Whether each part begins where the one before ends, as far as the offsets (0020,9228) are given."""
    begin = 0
    for part, header in sorted(parts, key=lambda item: item[0].number or 0):
        if part.offset is not None and part.offset != begin:
            return False
        begin += header.number_of_frames
    return True
