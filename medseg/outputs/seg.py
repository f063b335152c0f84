"""DICOM Segmentation (PS3.3, A.51) by highdicom, placed by affine and compared with the mask before it appears."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medseg.errors import CaseFailed, UsageError
from medseg.labels.codes import Code, SegmentCode, dicom_text
from medseg.labels.dicom_objects import label_object
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme
from medseg.labels.seg import open_seg, read_seg
from medseg.outputs.common import Job, copy_identity, save_checked, series_and_equipment
from medseg.outputs.source import slice_spacing_mm

_LEFT_OUT = "left out"


def write_seg(job: Job, path: Path) -> Path:
    """Write a Segmentation object; segments are numbered from 1 in the order of the labels that occur.

    Raises ``Refusal``: ``geometry-mismatch`` if the label map is not on the source's grid; ``CaseFailed`` if the file
    read again does not hold the mask.
    """
    job.covered()
    codes = list(job.codes.values())
    numbers = {code.label: number for number, code in enumerate(codes, start=1)}
    dataset = _build(job, codes, numbers)
    copy_identity(job.source.first, dataset)

    def check(partial: Path) -> None:
        if job.scheme.regions:  # segments that overlap are read one by one
            one_by_one = ((_read_again(partial, job, {label: n}) > 0, label) for label, n in numbers.items())
            same = all(np.array_equal(found, job.mask(label)) for found, label in one_by_one)
        else:
            same = np.array_equal(_read_again(partial, job, numbers), job.labels)
        if not same:
            raise CaseFailed(
                f"{path.name}: the segmentation read again differs from the mask; nothing was written, report this"
            )

    if job.options.segmentation_type == "FRACTIONAL":  # its values are rounded, so that it is only read again
        return save_checked(dataset, path, hd.seg.segread)
    return save_checked(dataset, path, check)


def _kind(job: Job) -> SegmentationTypeValues:
    """The type to write.

    Frames of one bit per pixel follow each other without padding (PS3.5, 8.1.1). Where rows × columns is no multiple
    of 8, most start within a byte, and common readers then show a shuffled mask, so that a byte per pixel is safer.
    """
    wanted = job.options.segmentation_type
    if wanted == "LABELMAP" and job.scheme.regions:
        raise UsageError("the type LABELMAP holds one segment a voxel, and regions overlap; write BINARY or AUTO")
    if wanted == "AUTO":
        wanted = "FRACTIONAL" if job.view(job.labels, job.frames[0]).size % 8 else "BINARY"
    return SegmentationTypeValues(wanted)


def _build(job: Job, codes: list[SegmentCode], numbers: Mapping[int, int]) -> Dataset:
    kind = _kind(job)
    probable = job.options.segmentation_type == "FRACTIONAL"
    empty = not (job.labels > 0).any()
    with warnings.catch_warnings():
        # highdicom warns that an empty mask keeps its empty frames, and about person names it does not write.
        warnings.simplefilter("ignore", UserWarning)
        return Segmentation(
            source_images=_completed(job),
            pixel_array=_pixels(job, codes, numbers),
            segmentation_type=kind,
            fractional_type="PROBABILITY" if probable else "OCCUPANCY",
            max_fractional_value=255 if probable else 1,
            segment_descriptions=[_description(job, code, numbers[code.label]) for code in codes],
            **series_and_equipment(job, "seg", "SEG"),
            transfer_syntax_uid=ExplicitVRLittleEndian,  # no codec between the mask and its reader
            omit_empty_frames=not empty,
            **_places(job),
            content_label="SEGMENTATION",
            content_description=dicom_text(job.options.notice),
        )


def _pixels(job: Job, codes: list[SegmentCode], numbers: Mapping[int, int]) -> NDArray[Any]:
    """The label map frame by frame as the source has them, with segment numbers instead of labels."""
    if job.options.segmentation_type == "FRACTIONAL":
        return _probabilities(job, codes)
    if job.scheme.regions:
        masks = [job.mask(code.label) for code in codes]
        return np.stack([np.stack([job.view(one, f) for one in masks], axis=-1) for f in job.frames]).astype(np.uint8)
    table = np.zeros(max(numbers) + 1, dtype=np.uint16 if len(numbers) > 255 else np.uint8)
    for label, number in numbers.items():
        table[label] = number
    return np.stack([table[job.view(job.labels, frame)] for frame in job.frames])


def _completed(job: Job) -> tuple[Dataset, ...]:
    """The source with measures that highdicom looks for in it, though they are given; only copies in memory change."""
    first = job.frames[0]
    for dataset in job.source.datasets:
        if not job.source.is_multiframe:
            dataset.SliceThickness = first.thickness_mm or slice_spacing_mm(job.geometry, first)
            continue
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if keyword not in shared:
                shared[keyword] = dataset.PerFrameFunctionalGroupsSequence[(first.number or 1) - 1][keyword]
    return job.source.datasets


def _places(job: Job) -> dict[str, Any]:
    """Where each frame lies: positions exactly as the source states them, so that highdicom links both."""
    first = job.frames[0]
    gap = slice_spacing_mm(job.geometry, first)
    return {
        "pixel_measures": hd.PixelMeasuresSequence(first.pixel_spacing_mm, first.thickness_mm or gap, gap),
        "plane_orientation": hd.PlaneOrientationSequence(hd.CoordinateSystemNames.PATIENT, first.cosines),
        "plane_positions": [hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, f.position) for f in job.frames],
    }


def _probabilities(job: Job, codes: list[SegmentCode]) -> NDArray[np.float32]:
    given = job.options.probabilities or {}
    missing = [code.name for code in codes if code.label not in given]
    if missing:
        raise UsageError(
            f"a FRACTIONAL segmentation needs probabilities, none for {', '.join(missing)}; give them or write BINARY"
        )
    channels = [np.stack([job.view(given[code.label], frame) for frame in job.frames]) for code in codes]
    return np.stack(channels, axis=-1).astype(np.float32)


def _description(job: Job, code: SegmentCode, number: int) -> SegmentDescription:
    description = SegmentDescription(
        segment_number=number,
        segment_label=code.name,
        segmented_property_category=coded(code.category),
        segmented_property_type=coded(code.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(job),
        tracking_uid=job.uid("tracking", str(code.label)),
        tracking_id=dicom_text(f"{job.bundle.name} {code.name}"),
        anatomic_regions=[coded(code.region)] if code.region else None,
        display_color=CIELabColor.from_rgb(*code.rgb),
    )
    if code.modifiers:
        modifiers = [coded(modifier) for modifier in code.modifiers]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return description


def algorithm(job: Job) -> hd.AlgorithmIdentificationSequence:
    """What made the result: bundle, version and hash."""
    return hd.AlgorithmIdentificationSequence(
        name=dicom_text(job.bundle.name),
        family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=dicom_text(job.bundle.version),
        source="medseg",
        parameters={"sha256": job.bundle.sha256},
    )


def coded(code: Code) -> CodedConcept:
    """A term as highdicom wants it."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def _read_again(path: Path, job: Job, numbers: Mapping[int, int]) -> NDArray[Any]:
    """The label map that a written file holds on the source's grid, by number: two structures may have one name."""
    header = label_object(path)
    if header is None:
        raise CaseFailed(f"{path.name} is no segmentation when it is read again; nothing was written, report this")
    seg, named = open_seg(header, path.name), {number: str(label) for label, number in numbers.items()}
    seg = replace(seg, segments={number: named.get(number, _LEFT_OUT) for number in seg.segments})
    scheme = LabelScheme({label: str(label) for label in numbers})
    return read_seg(seg, scheme, ReadingRules(names={_LEFT_OUT: None}), job.image_grid).array
