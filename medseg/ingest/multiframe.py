"""The frames of an enhanced multi-frame CT, MR or PET object, from its functional groups (PS3.3 C.7.6.16).

Every frame becomes a header of its own, so that the same rules sort, split and judge classic and enhanced series.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from medseg.ingest.elements import Elements
from medseg.ingest.headers import Frame, Header

__all__ = ["read_frames"]

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
)

_DATE_DIGITS = 8


def read_frames(header: Header, found: Elements) -> Header:
    """The header with its ``frames`` filled in; with ``defect`` set where the functional groups cannot be used."""
    from pydicom.filereader import read_dataset

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

    measures, transform = first("PixelMeasuresSequence"), first("PixelValueTransformationSequence")
    slope, intercept = transform.get("RescaleSlope"), transform.get("RescaleIntercept")
    thickness = measures.get("SliceThickness")
    return Frame(
        position=_vector(first("PlanePositionSequence").get("ImagePositionPatient"), 3),
        orientation=_vector(first("PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
        pixel_spacing=_vector(measures.get("PixelSpacing"), 2),
        slice_thickness_mm=None if thickness is None else float(thickness),
        rescale=header.rescale if slope is None or intercept is None else (float(slope), float(intercept)),
        facts=_facts(first),
    )


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


def _vector(value: Any, length: int) -> tuple[float, ...] | None:
    if value is None or len(value) != length:
        return None
    return tuple(float(part) for part in value)
