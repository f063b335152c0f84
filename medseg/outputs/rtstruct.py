"""RT Structure Set (PS3.3, A.19): outlines at the 0.5 level, holes by exclusive or, with the Dice of its round trip.

Contours run between the centres of inner and outer pixels, so that filling them gives the mask back; contours
through pixel centres would lose half a pixel all around.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from medseg.errors import CaseFailed
from medseg.labels.codes import Code, SegmentCode, dicom_text
from medseg.labels.rtstruct import read_rtstruct, structure_set
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme
from medseg.outputs.common import Job, reference_to, save_checked, series_description, start_dataset
from medseg.outputs.source import Frame, SourceImages

_LEAST_DICE = 0.999
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(job: Job, path: Path) -> Path:
    """Write an RT Structure Set; each ROI's description states the Dice of filling its contours again.

    Raises ``Refusal``: ``geometry-mismatch`` if the label map is not on the source's grid; ``CaseFailed`` if filling
    the contours of the file read again does not give the mask.
    """
    job.covered()
    codes = list(job.codes.values())
    dataset = start_dataset(job, "rtstruct", RTStructureSetStorage, "RTSTRUCT")
    dataset.SeriesDescription = series_description(job, "RTSTRUCT")
    dataset.OperatorsName = None
    dataset.StructureSetLabel = "SEGMENTATION"
    dataset.StructureSetName = dicom_text(job.bundle.name)
    dataset.StructureSetDescription = dicom_text(
        f"{job.bundle.name} {job.bundle.version} {job.bundle.sha256}; {job.options.notice}", 1024
    )
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.ContentDate, dataset.ContentTime
    del dataset.ContentDate, dataset.ContentTime
    dataset.FrameOfReferenceUID = job.source.first.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = job.source.first.get("PositionReferenceIndicator")
    dataset.ReferencedFrameOfReferenceSequence = [_references(job.source)]
    dataset.ROIContourSequence = [_contours(job, code, n) for n, code in enumerate(codes, start=1)]
    dataset.StructureSetROISequence = [_roi(job, code, n) for n, code in enumerate(codes, start=1)]
    dataset.RTROIObservationsSequence = [_observation(code, n) for n, code in enumerate(codes, start=1)]
    dataset.ApprovalStatus = "UNAPPROVED"

    def check(partial: Path) -> None:
        for code, dice in zip(codes, _round_trip(pydicom.dcmread(partial), job), strict=True):
            if dice < _LEAST_DICE:
                raise CaseFailed(
                    f"{path.name}: filling the contours of {code.name} gives Dice {dice:.4f}; nothing was written"
                )

    for roi, dice in zip(dataset.StructureSetROISequence, _round_trip(dataset, job), strict=True):
        roi.ROIDescription = f"Dice of the filled contours against the mask: {dice:.4f}"
    return save_checked(dataset, path, check)


def _references(source: SourceImages) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = source.first.SeriesInstanceUID
    series.ContourImageSequence = [reference_to(dataset) for dataset in source.datasets]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_COMPONENT, source.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = source.first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(dataset: Dataset, number: int | None) -> Dataset:
    item = reference_to(dataset)
    if number is not None:
        item.ReferencedFrameNumber = number
    return item


def _roi(job: Job, code: SegmentCode, number: int) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = job.source.first.FrameOfReferenceUID
    item.ROIName = code.name
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = dicom_text(f"{job.bundle.name} {job.bundle.version}")
    return item


def _observation(code: SegmentCode, number: int) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    identification = _code_item(code.type)
    if code.modifiers:
        identification.SegmentedPropertyTypeModifierCodeSequence = [_code_item(one) for one in code.modifiers]
    item.RTROIIdentificationCodeSequence = [identification]
    item.RTROIInterpretedType = ""
    item.ROIInterpreter = None
    return item


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def _contours(job: Job, code: SegmentCode, number: int) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = number
    item.ROIDisplayColor = list(code.rgb)
    contours, mask = [], job.mask(code.label)
    for frame in job.frames:
        contours += _outlines(job.view(mask, frame), frame, job.source)
    for index, contour in enumerate(contours, start=1):
        contour.ContourNumber = index
    if contours:
        item.ContourSequence = contours
    return item


def _outlines(mask: NDArray[np.bool_], frame: Frame, source: SourceImages) -> list[Dataset]:
    if not mask.any():
        return []
    padded = np.pad(mask, 1).astype(np.float32)
    rings = contour_generator(z=padded, line_type=LineType.Separate).lines(0.5)
    kind = "CLOSED_PLANAR" if len(rings) == 1 else "CLOSEDPLANAR_XOR"
    return [_ring(np.asarray(ring)[:-1] - 1.0, kind, frame, source) for ring in rings]


def _ring(pixels: NDArray[np.float64], kind: str, frame: Frame, source: SourceImages) -> Dataset:
    points = frame.position + pixels[:, :1] * frame.steps[0] + pixels[:, 1:] * frame.steps[1]
    item = Dataset()
    item.ContourImageSequence = [_image(source.datasets[frame.dataset], frame.number)]
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(points)
    item.ContourData = [_decimal(value) for value in points.ravel()]
    return item


def _decimal(value: float) -> str:
    """A decimal string: 16 characters at most (PS3.5, 6.2), here to 1e-5 mm."""
    text = f"{value:.5f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2.0 * int((first & second).sum()) / total


def _round_trip(dataset: Dataset, job: Job) -> Iterator[float]:
    """Dice of each ROI filled again; one at a time, since regions overlap and two may have one name."""
    found, rules = structure_set(dataset, "the structure set"), ReadingRules(missing_slices="empty")
    for roi, label in zip(found.rois, job.codes, strict=True):
        alone = replace(found, rois=(replace(roi, name="it"),))
        filled = read_rtstruct(alone, LabelScheme({1: "it"}), rules, job.image_grid).array == 1
        yield _dice(filled, job.mask(label))
