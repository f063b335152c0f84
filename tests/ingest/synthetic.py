"""Small synthetic DICOM series in which every pixel's value tells which pixel of which slice it is.

So the distance between where a voxel is and where a reader says it is can be measured for every voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

ROWS, COLUMNS = 10, 12
PIXELS = ROWS * COLUMNS
ROW_SPACING_MM, COLUMN_SPACING_MM = 0.8, 0.7
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.9659258262890683, 0.2588190451025207, 0.0, -0.2241438680420134, 0.8365163037378079, 0.5)
EVENLY = (0.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5)
FIRST_MM = np.array([-31.5, -22.25, 100.0])


@dataclass
class Series:
    """Slices, and for each encoded value the position of its pixel in mm (LPS)."""

    slices: list[Dataset] = field(default_factory=list)

    def truth(self) -> dict[int, NDArray[np.float64]]:
        found: dict[int, NDArray[np.float64]] = {}
        for item in self.slices:
            found.update(positions_of(item, np.asarray(item.pixel_array)))
        return found

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(self.slices):
            save(item, folder / f"image-{number:03d}.dcm")
        return folder


def positions_of(item: Any, values: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
    """For each value in one slice the position of its pixel."""
    origin = np.array(item.ImagePositionPatient, dtype=np.float64)
    axes = np.array(item.ImageOrientationPatient, dtype=np.float64)
    down, across = (float(v) for v in item.PixelSpacing)
    return {
        int(values[r, c]): origin + axes[:3] * across * c + axes[3:] * down * r
        for r in range(values.shape[0])
        for c in range(values.shape[1])
    }


def encoded(number: int, rows: int = ROWS, columns: int = COLUMNS) -> NDArray[np.uint16]:
    """Pixels of slice ``number``, each with a value of its own."""
    return (number * PIXELS + 1 + np.arange(rows * columns)).reshape(rows, columns).astype(np.uint16)


def slice_at(position: Iterable[float], number: int, orientation: Sequence[float] = AXIAL) -> Dataset:
    """One CT slice; ``number`` makes its values and its instance number."""
    item = Dataset()
    item.SOPClassUID = CTImageStorage
    item.SOPInstanceUID = generate_uid(entropy_srcs=[f"instance-{number}"])
    item.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    item.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    item.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    item.Modality, item.PatientID, item.PatientName = "CT", "synthetic-1", "Phantom^One"
    item.SeriesDescription, item.SeriesNumber = "axial", 3
    item.InstanceNumber = number + 1
    item.ImagePositionPatient = [round(float(v), 9) for v in position]
    item.ImageOrientationPatient = list(orientation)
    item.PixelSpacing = [ROW_SPACING_MM, COLUMN_SPACING_MM]
    item.SliceThickness = 2.5
    item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    set_pixels(item, encoded(number))
    return item


def set_pixels(item: Dataset, pixels: NDArray[Any], bits_stored: int | None = None) -> None:
    item.Rows, item.Columns = pixels.shape
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = 8 * pixels.dtype.itemsize
    item.BitsStored = bits_stored or item.BitsAllocated
    item.HighBit = item.BitsStored - 1
    item.PixelRepresentation = int(pixels.dtype.kind == "i")
    item.PixelData = pixels.tobytes()
    item["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = item.SOPClassUID
    meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    item.file_meta = meta


def enlarge(item: Dataset, number: int) -> None:
    """Pixels enough for encoders that want at least 32 rows and columns (for ``make_series(change=enlarge)``)."""
    set_pixels(item, encoded(number * 12, 36, 40))


def save(item: Dataset, path: Path) -> Path:
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID
    item.save_as(path, enforce_file_format=True)
    return path


def make_series(
    distances_mm: Sequence[float] = EVENLY,
    *,
    orientation: Sequence[float] = AXIAL,
    tilt_degrees: float = 0.0,
    first_number: int = 0,
    change: Callable[[Dataset, int], None] | None = None,
) -> Series:
    """A series with slices at these distances along the normal.

    With a tilt the slices also shift along their columns, as those of a tilted gantry do.
    """
    axes = np.array(orientation).reshape(2, 3)
    normal = np.cross(*axes)
    step = normal + np.tan(np.radians(tilt_degrees)) * axes[1]
    series = Series()
    for number, distance in enumerate(distances_mm):
        item = slice_at(FIRST_MM + distance * step, first_number + number, orientation)
        if change is not None:
            change(item, number)
        series.slices.append(item)
    return series


def largest_error_mm(
    values: NDArray[Any], affine_ras: NDArray[np.float64], truth: dict[int, NDArray[np.float64]]
) -> float:
    """Largest distance between a voxel's true position and where array and affine say it is; infinite if unknown."""
    index = np.argwhere(np.ones(values.shape, dtype=bool))
    ras = index @ affine_ras[:3, :3].T + affine_ras[:3, 3]
    lps = ras * [-1, -1, 1]
    flat = np.rint(values[tuple(index.T)]).astype(int).tolist()
    if any(value not in truth for value in flat):
        return float("inf")
    return float(np.linalg.norm(lps - np.array([truth[value] for value in flat]), axis=1).max())


def enhanced(series: Series, *, order: Sequence[int] | None = None) -> Dataset:
    """An enhanced multi-frame MR object with the slices of a classic series, in any order."""
    chosen = [series.slices[i] for i in (order if order is not None else range(len(series.slices)))]
    first = series.slices[0]
    item = Dataset()
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        setattr(item, name, getattr(first, name))
    item.SOPClassUID, item.SOPInstanceUID = EnhancedMRImageStorage, generate_uid(entropy_srcs=["enhanced"])
    item.Modality, item.SeriesNumber, item.InstanceNumber = "MR", 4, 1
    item.ImageType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    set_pixels(item, np.concatenate([s.pixel_array for s in chosen]))
    item.Rows, item.NumberOfFrames = first.Rows, len(chosen)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    plane.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PlaneOrientationSequence = DicomSequence([plane])
    item.SharedFunctionalGroupsSequence = DicomSequence([shared])
    item.DimensionOrganizationSequence = DicomSequence([Dataset()])
    item.DimensionOrganizationSequence[0].DimensionOrganizationUID = generate_uid(entropy_srcs=["dimension"])
    item.DimensionIndexSequence = DicomSequence([_dimension(item)])
    item.PerFrameFunctionalGroupsSequence = DicomSequence([_group(s, n) for n, s in enumerate(chosen)])
    return item


def _dimension(item: Dataset) -> Dataset:
    index = Dataset()
    index.DimensionOrganizationUID = item.DimensionOrganizationSequence[0].DimensionOrganizationUID
    index.DimensionIndexPointer = 0x00209057  # in-stack position number
    index.FunctionalGroupPointer = 0x00209111
    return index


def _group(item: Dataset, number: int) -> Dataset:
    group, position, content, transform = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = item.ImagePositionPatient
    content.StackID, content.InStackPositionNumber = "1", number + 1
    content.DimensionIndexValues = [number + 1]
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = "1", "0", "US"
    group.PlanePositionSequence = DicomSequence([position])
    group.FrameContentSequence = DicomSequence([content])
    group.PixelValueTransformationSequence = DicomSequence([transform])
    return group
