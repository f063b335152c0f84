"""RT Structure Set (PS3.3, A.19): outlines at the 0.5 level, holes by exclusive or, with the Dice of its round trip.

Contours run between the centres of inner and outer pixels, so that filling them gives the mask back; contours
through pixel centres would lose half a pixel all around.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import RTStructureSetStorage

from medseg.errors import CaseFailed
from medseg.geometry import Geometry
from medseg.labels.codes import Code, SegmentCode, dicom_text
from medseg.outputs.common import Job, reference_to, save_checked, series_description, start_dataset
from medseg.outputs.source import Frame, SourceImages, embed

_LEAST_DICE = 0.999
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(job: Job, path: Path) -> Path:
    """Write an RT Structure Set; each ROI's description states the Dice of filling its contours again.

    Raises
    ------
    Refusal
        ``geometry-mismatch`` if the label map is not on the source's grid.
    CaseFailed
        If filling the contours of the file read again does not give the mask.
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
        read = pydicom.dcmread(partial)
        for number, code in enumerate(codes, start=1):
            dice = _dice(_filled(read, job.geometry, job.source, {number: 1}) > 0, job.mask(code.label))
            if dice < _LEAST_DICE:
                raise CaseFailed(
                    f"{path.name}: filling the contours of {code.name} gives Dice {dice:.4f}; nothing was written"
                )

    for number, (roi, code) in enumerate(zip(dataset.StructureSetROISequence, codes, strict=True), start=1):
        dice = _dice(_filled(dataset, job.geometry, job.source, {number: 1}) > 0, job.mask(code.label))
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
    if code.modifier is not None:
        identification.SegmentedPropertyTypeModifierCodeSequence = [_code_item(code.modifier)]
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
    points = frame.position + pixels[:, :1] * frame.along_columns + pixels[:, 1:] * frame.along_rows
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


def read_labels(path: Path, geometry: Geometry, source: SourceImages, labels: dict[int, int]) -> NDArray[np.uint16]:
    """Fill the contours of a file on a grid: label by ROI number; other ROIs are left out."""
    return _filled(pydicom.dcmread(path), geometry, source, labels)


def _filled(dataset: Dataset, geometry: Geometry, source: SourceImages, labels: dict[int, int]) -> NDArray[np.uint16]:
    frames = {(source.datasets[f.dataset].SOPInstanceUID, f.number): f for f in source.frames}
    volume = np.zeros(geometry.shape, dtype=np.uint16)
    for item in dataset.ROIContourSequence:
        if int(item.ReferencedROINumber) not in labels:
            continue
        for frame, rings in _by_frame(item.get("ContourSequence", DicomSequence()), frames):
            view = embed(volume, geometry, frame)
            if view is None:
                raise CaseFailed("a contour lies outside the grid of its source")
            view[fill(rings, frame.shape)] = labels[int(item.ReferencedROINumber)]
    return volume


def _by_frame(
    contours: DicomSequence, frames: dict[tuple[str, int | None], Frame]
) -> Iterator[tuple[Frame, list[NDArray[np.float64]]]]:
    found: dict[tuple[str, int | None], list[NDArray[np.float64]]] = {}
    for contour in contours:
        image = contour.ContourImageSequence[0]
        number = image.get("ReferencedFrameNumber")
        key = (image.ReferencedSOPInstanceUID, None if number is None else int(number))
        frame = frames[key]
        points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3) - frame.position
        basis = np.stack([frame.along_columns, frame.along_rows], axis=1)
        found.setdefault(key, []).append(np.asarray(np.linalg.lstsq(basis, points.T, rcond=None)[0].T, np.float64))
    for key, rings in found.items():
        yield frames[key], rings


def fill(rings: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside an odd number of rings; rings are (column, row) in pixels.

    Each edge toggles, in every row that it crosses, the pixels to the right of it; the running parity of the
    toggles is the inside.
    """
    toggles = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first, last = np.ceil(low).astype(int), np.ceil(high).astype(int)  # rows with low <= row < high
        counts = last - first
        edges = np.repeat(np.arange(len(ring)), counts)
        rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
        slope = (end[edges, 0] - start[edges, 0]) / (end[edges, 1] - start[edges, 1])
        columns = start[edges, 0] + (rows - start[edges, 1]) * slope
        inside = (rows >= 0) & (rows < shape[0])
        np.add.at(toggles, (rows[inside], np.clip(np.ceil(columns[inside]), 0, shape[1]).astype(int)), 1)
    return np.asarray(np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1)
