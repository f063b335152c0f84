"""DICOM series built in memory, whose geometry is known exactly, and a bundle to write results with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from medseg.geometry import Geometry
from medseg.ingest import SeriesRecord

__all__ = ["CODES", "FakeBundle", "blobs", "rotation", "write_enhanced", "write_series"]

CODES: dict[int, Any] = {
    1: {
        "category": ["123037004", "SCT", "Anatomical Structure"],
        "type": ["2421000", "SCT", "Hippocampus structure"],
        "laterality": ["7771000", "SCT", "Left"],
        "colour": "#f0b000",
    },
    3: {
        "category": {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Abnormal Structure"},
        "type": {"value": "108369006", "scheme": "SCT", "meaning": "Neoplasm"},
        "region": ["12738006", "SCT", "Brain"],
        "colour": [60, 180, 240],
    },
}


@dataclass(frozen=True)
class FakeBundle:
    """What the writers need of a bundle."""

    name: str = "brain_mr_test"
    version: str = "1.2.3"
    sha256: str = "ab" * 32
    labels: dict[int, str] = field(default_factory=lambda: {1: "left hippocampus", 3: "lesion"})
    label_codes: dict[int, Any] = field(default_factory=lambda: CODES)


def rotation(degrees: float) -> NDArray[np.float64]:
    """Rotation about an axis that is none of the patient's."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    angle = np.radians(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def blobs(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Label 1 with a hole, and label 3 touching it and the border: neither symmetric in any axis."""
    labels = np.zeros(shape, np.uint8)
    labels[1:-1, 1:-2, 1:-1] = 1
    labels[2, 2, 1:-1] = 0
    labels[-2:, -3:, -2:] = 3
    labels[0, 0, 1] = 3
    return labels


def write_series(
    folder: Path, affine_lps: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[SeriesRecord, Geometry]:
    """A CT series whose columns, rows and slices follow the affine's first, second and third column (LPS+).

    The files are named and numbered against their order in space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    files = []
    for k in range(shape[2]):
        dataset = _patient(CTImageStorage, study, series, frame)
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.InstanceNumber = 1 + (k * 7) % 23
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in affine_lps[:3, 3] + k * affine_lps[:3, 2]]
        dataset.ImageOrientationPatient = _cosines(affine_lps)
        dataset.PixelSpacing = [f"{np.linalg.norm(affine_lps[:3, i]):.6f}" for i in (1, 0)]
        dataset.SliceThickness = "1.0"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
        _pixels(dataset, np.arange(shape[0] * shape[1], dtype=np.int16).reshape(shape[1], shape[0]) + k)
        path = folder / f"{(k * 7) % 23:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        files.append(str(path))
    return _record(folder, tuple(files), affine_lps, shape)


def write_enhanced(
    folder: Path, affine_lps: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[SeriesRecord, Geometry]:
    """The same as one enhanced multi-frame object, its frames in reversed order."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = _patient(EnhancedMRImageStorage, generate_uid(), generate_uid(), generate_uid())
    dataset.Modality, dataset.InstanceNumber = "MR", 1
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [f"{np.linalg.norm(affine_lps[:3, i]):.6f}" for i in (1, 0)]
    measures.SliceThickness = "1.0"
    orientation.ImageOrientationPatient = _cosines(affine_lps)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k in reversed(range(shape[2])):
        own, position = Dataset(), Dataset()
        position.ImagePositionPatient = [f"{v:.6f}" for v in affine_lps[:3, 3] + k * affine_lps[:3, 2]]
        own.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence.append(own)
    dataset.NumberOfFrames = shape[2]
    _pixels(dataset, np.zeros((shape[2], shape[1], shape[0]), np.int16))
    path = folder / "enhanced.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return _record(folder, (str(path),), affine_lps, shape)


def _record(
    folder: Path, files: tuple[str, ...], affine_lps: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[SeriesRecord, Geometry]:
    geometry = Geometry(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps)
    return SeriesRecord("series-0", str(folder), "dicom", files, usable=True, shape=shape), geometry


def _cosines(affine_lps: NDArray[np.float64]) -> list[str]:
    unit = affine_lps[:3, :2] / np.linalg.norm(affine_lps[:3, :2], axis=0)
    return [f"{v:.12f}"[:16] for v in unit.T.ravel()]


def _patient(sop_class: str, study: str, series: str, frame: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = "Müller^Test", "P1"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19700101", "F", "050Y"
    dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", "test"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200102", "101112", "S1", "A1"
    dataset.ReferringPhysicianName, dataset.PositionReferenceIndicator = "", ""
    dataset.SeriesNumber, dataset.Manufacturer, dataset.PatientPosition = 1, "Test", "HFS"
    return dataset


def _pixels(dataset: Dataset, values: NDArray[np.int16]) -> None:
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = values.astype(np.int16).tobytes()


def read(path: Path) -> pydicom.Dataset:
    """A written object."""
    return pydicom.dcmread(path)
