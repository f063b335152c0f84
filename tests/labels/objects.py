"""DICOM segmentations and structure sets built element by element, so that each can be right, or wrong on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medseg.geometry import Geometry
from medseg.labels import LabelMap, LabelScheme, ReadingRules, read_label
from medseg.labels.read import ImageOf
from tests.outputs.series import write_series

SHAPE = (9, 8, 6)
SPACING_MM = (0.8, 1.1, 2.5)
NAMES = {0: "background", 1: "liver", 2: "tumour"}
SEG, LABELMAP, RTSTRUCT = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("66.4", "66.7", "481.3"))


def scheme(**names: int) -> LabelScheme:
    """The usual structures, or others."""
    return LabelScheme({0: "background", **{value: name for name, value in names.items()}} if names else NAMES)


def masks(shape: tuple[int, int, int] = SHAPE) -> dict[str, NDArray[np.bool_]]:
    """Two structures side by side, neither symmetric nor in every slice."""
    liver, tumour = np.zeros((2, *shape), dtype=bool)
    liver[1:5, 2:-1, 1:-1] = True
    liver[2, 3, 2] = False
    tumour[5:7, 1:3, 3:-1] = True
    tumour[7, 2, 3] = True
    return {"liver": liver, "tumour": tumour}


def label_map(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    found = masks(shape)
    return np.where(found["tumour"], 2, np.where(found["liver"], 1, 0)).astype(np.uint8)


@dataclass(frozen=True)
class Series:
    """A series on disk and where its voxels lie."""

    folder: Path
    geometry: Geometry
    affine_lps: NDArray[np.float64]
    first: Dataset

    def point(self, i: float, j: float, k: float) -> NDArray[np.float64]:
        """A voxel's place in DICOM's frame."""
        return self.affine_lps[:3, :3] @ np.array([i, j, k]) + self.affine_lps[:3, 3]


def affine(turn: NDArray[np.float64] | None = None, shear_mm: float = 0.0) -> NDArray[np.float64]:
    """LPS affine of the usual spacing: turned, its slices shifted along the rows by some mm each."""
    result = np.eye(4)
    axes = np.diag(SPACING_MM)
    axes[1, 2] = shear_mm
    result[:3, :3] = (np.eye(3) if turn is None else turn) @ axes
    result[:3, 3] = (-31.5, 47.25, -120.0)
    return result


def series(folder: Path, affine_lps: NDArray[np.float64] | None = None, shape: tuple[int, int, int] = SHAPE) -> Series:
    affine_lps = affine() if affine_lps is None else affine_lps
    record, geometry = write_series(folder, affine_lps, shape)
    return Series(folder, geometry, affine_lps, pydicom.dcmread(record.files[0], stop_before_pixels=True))


def segmentation(
    of: Series, structures: Mapping[str, NDArray[Any]] | None = None, kind: str = "BINARY", **change: Any
) -> Dataset:
    """A segmentation of whole frames in the order of the slices, empty ones left out.

    ``structures``: Masks, or fractional values from 0 to ``most``. ``change``: ``order`` and ``most``.
    """
    structures = masks(of.geometry.shape) if structures is None else structures
    dataset = _started(of, LABELMAP if kind == "LABELMAP" else SEG, "SEG")
    dataset.SegmentationType = kind
    dataset.ReferencedSeriesSequence = [_item(SeriesInstanceUID=of.first.SeriesInstanceUID)]
    dataset.SegmentSequence = [
        _item(SegmentNumber=number, SegmentLabel=name) for number, name in enumerate(structures, start=1)
    ]
    frames: list[tuple[int, int, NDArray[Any]]] = []
    for k in range(of.geometry.shape[2]):
        if kind == "LABELMAP":
            numbers = np.zeros(of.geometry.shape[:2], np.uint8)
            for number, mask in enumerate(structures.values(), start=1):
                numbers[mask[..., k] > 0] = number
            frames += [(k, 0, numbers)] if numbers.any() else []
            continue
        for number, mask in enumerate(structures.values(), start=1):
            frames += [(k, number, mask[..., k])] if mask[..., k].any() else []
    frames = [frames[index] for index in change.get("order", range(len(frames)))]
    _set_frames(dataset, of, frames)
    if kind == "FRACTIONAL":
        dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", change.get("most", 255)
    return dataset


def _set_frames(dataset: Dataset, of: Series, frames: Sequence[tuple[int, int, NDArray[Any]]]) -> None:
    columns, rows, _ = of.geometry.shape
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, len(frames)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if dataset.SegmentationType == "BINARY" else 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    steps = [np.linalg.norm(of.affine_lps[:3, axis]) for axis in range(3)]
    cosines = np.concatenate([of.affine_lps[:3, axis] / steps[axis] for axis in (0, 1)])
    shared = _item(
        PixelMeasuresSequence=[
            _item(PixelSpacing=_decimals([steps[1], steps[0]]), SpacingBetweenSlices=_decimals(steps)[2])
        ],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=_decimals(cosines))],
    )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k, number, _ in frames:
        own = _item(PlanePositionSequence=[_item(ImagePositionPatient=_decimals(of.point(0, 0, k)))])
        if number:
            own.SegmentIdentificationSequence = [_item(ReferencedSegmentNumber=number)]
        dataset.PerFrameFunctionalGroupsSequence.append(own)
    pixels = np.stack([frame.T for _, _, frame in frames]).astype(np.uint8)
    dataset.PixelData = (
        pack_bits((pixels > 0).astype(np.uint8).ravel()) if bits == 1 else pixels.tobytes() + b"\0" * (pixels.size % 2)
    )
    dataset["PixelData"].VR = "OB"


def structure_set(of: Series, contours: Mapping[str, Sequence[Any]], **change: Any) -> Dataset:
    """A structure set; a contour is an array of voxel indices (i, j, k), or a pair of it and its type."""
    dataset = _started(of, RTSTRUCT, "RTSTRUCT")
    dataset.StructureSetLabel = "TEST"
    referenced = _item(SeriesInstanceUID=of.first.SeriesInstanceUID)
    frame = _item(
        FrameOfReferenceUID=of.first.FrameOfReferenceUID,
        RTReferencedStudySequence=[_item(RTReferencedSeriesSequence=[referenced])],
    )
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence = [
        _item(ROINumber=n, ROIName=name, ReferencedFrameOfReferenceUID=of.first.FrameOfReferenceUID)
        for n, name in enumerate(contours, start=1)
    ]
    dataset.ROIContourSequence = [
        _item(ReferencedROINumber=n, ContourSequence=[_contour(of, one, change.get("decimals", 5)) for one in drawn])
        for n, drawn in enumerate(contours.values(), start=1)
    ]
    return dataset


def _contour(of: Series, given: Any, decimals: int) -> Dataset:
    points, kind = given if isinstance(given, tuple) else (given, "CLOSED_PLANAR")
    places = np.array([of.point(*point) for point in np.asarray(points, float)]).reshape(-1, 3)
    return _item(
        ContourGeometricType=kind,
        NumberOfContourPoints=len(places),
        ContourData=[f"{value:.{decimals}f}" for value in places.ravel()],
    )


def ring(rows: tuple[float, float], columns: tuple[float, float], k: float) -> NDArray[np.float64]:
    """A rectangle in the slice k."""
    (a, b), (c, d) = rows, columns
    return np.array([[a, c, k], [a, d, k], [b, d, k], [b, c, k]], dtype=float)


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def read(dataset: Dataset, path: Path, image: ImageOf, rules: ReadingRules | None = None, **names: int) -> LabelMap:
    """Save an object and read it as a label."""
    return read_label(save(dataset, path), scheme=scheme(**names), rules=rules, image=image)


def _started(of: Series, sop_class: str, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID = modality, generate_uid()
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = of.first.StudyInstanceUID, of.first.FrameOfReferenceUID
    dataset.PatientID, dataset.PatientName = of.first.PatientID, of.first.PatientName
    return dataset


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _decimals(values: Any) -> list[str]:
    return [f"{value:.12f}"[:16] for value in np.ravel(values)]
