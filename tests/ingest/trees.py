"""Small DICOM trees for the tests of the index: few pixels, sound geometry, planted identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

IDENTITIES = ("Planted^Name", "PLANTED-ID-77", "19610203", "20190405", "Planted Hospital")
ROOT = "1.2.826.0.1.3680043.8.498."


def one_slice(series: str, number: int, **attributes: Any) -> Dataset:
    """A CT slice of 4×3 pixels, 2 mm above the one before."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}{series}.{number}"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.AcquisitionDate, data.InstitutionName = IDENTITIES
    data.Modality, data.SeriesDescription, data.AcquisitionTime = "CT", "Axial", "101112"
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}1000", f"{ROOT}{series}"
    data.SeriesNumber, data.InstanceNumber = 1, number
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [1.5, 1.5], 2
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 3, 4, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = np.full((3, 4), number, np.int16).tobytes()
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    return data


def write_series(folder: Path, series: str, count: int = 6, **attributes: Any) -> list[Path]:
    """A series of slices in files without extension."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"I{series}-{number}" for number in range(count)]
    for number, path in enumerate(paths):
        one_slice(series, number, **attributes).save_as(path, enforce_file_format=True)
    return paths
