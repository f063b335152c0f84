"""Synthetic patients on disk: a DICOM study as a scanner would send it, or many patients as DICOM or NIfTI.

A study has a main series, a localizer and a thin series. Attributes follow the CT Image and MR Image IODs (PS3.3 A.3,
A.4) with every mandatory attribute. All UIDs follow from the seed, names and dates are fictional, and files are named
in random order, since real exports are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medseg.errors import UsageError
from medseg.geometry import Geometry, lps_to_ras
from medseg.ingest import save_nifti
from medseg.phantom.patient import Phantom, make_patient

_CT_INTERCEPT = -1024
_NAMES = ("Quince^Ada", "Pepper^Bo", "Juniper^Cleo", "Saffron^Dan", "Sorrel^Eve", "Tarragon^Finn", "Vanilla^Gus")


@dataclass(frozen=True)
class WrittenStudy:
    """Where a study was written: one folder per series."""

    main: Path
    localizer: Path
    thin: Path | None


@dataclass(frozen=True)
class _Series:
    number: int
    description: str
    image_type: tuple[str, ...]
    geometry: Geometry
    voxels: NDArray[np.int16]


def write_dicom(phantom: Phantom, folder: str | Path, *, thin: bool = True) -> WrittenStudy:
    """Write a patient's study below ``folder``.

    Parameters
    ----------
    phantom
        The patient; its image becomes the main series, ``phantom.label`` belongs to that grid.
    folder
        Gets one folder per series.
    thin
        Also write a series of the same patient with slices half as thick, beside the one-slice localizer.

    Returns
    -------
    WrittenStudy
        The folders of the series; each appears whole or not at all.

    Raises
    ------
    UsageError
        If a series' folder exists already.
    """
    folder = Path(folder)
    main = _Series(2, "Abdomen", _axial(phantom), phantom.geometry, phantom.image)
    _write_series(phantom, main, folder / "abdomen")
    _write_series(phantom, _localizer(phantom), folder / "localizer")
    if thin:
        _write_series(phantom, _thin(phantom), folder / "abdomen-thin")
    return WrittenStudy(folder / "abdomen", folder / "localizer", folder / "abdomen-thin" if thin else None)


def _axial(phantom: Phantom) -> tuple[str, ...]:
    return ("ORIGINAL", "PRIMARY", "AXIAL" if phantom.kind == "ct" else "OTHER")


def _localizer(phantom: Phantom) -> _Series:
    """One coronal slice: the mean over the patient's depth, placed in the middle of it."""
    projection = phantom.image.mean(axis=1).astype(np.int16)[:, ::-1, None]
    i, j, k = phantom.affine[:3, :3].T
    origin = phantom.affine[:3, 3] + j * (phantom.image.shape[1] - 1) / 2 + k * (phantom.image.shape[2] - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = i, -k, j, origin
    shape = (projection.shape[0], projection.shape[1], 1)
    kinds = ("ORIGINAL", "PRIMARY", "LOCALIZER" if phantom.kind == "ct" else "OTHER")
    return _Series(1, "Localizer", kinds, Geometry(shape, affine), projection)


def _thin(phantom: Phantom) -> _Series:
    """The same patient again, with slices half as thick over the same extent."""
    columns, rows, slices = phantom.image.shape
    halves = np.diag([1.0, 1.0, 0.5, 1.0])
    halves[2, 3] = -0.25
    thin = phantom.on_grid((columns, rows, 2 * slices), np.round(phantom.affine @ halves, 9))
    return _Series(3, "Abdomen thin", _axial(phantom), thin.geometry, thin.image)


def _write_series(phantom: Phantom, series: _Series, folder: Path) -> None:
    instance = _common(phantom, series)
    with _whole_folder(folder) as partial:
        for index, name in enumerate(_random_names(phantom, series)):
            _set_slice(instance, phantom, series, index)
            instance.save_as(partial / name, enforce_file_format=True)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the body ends; nothing stays if it raises."""
    if folder.exists():
        raise UsageError(f"{folder} exists already; give a new folder for the series")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".medseg-partial-", dir=folder.parent) as place:
        partial = Path(place) / folder.name
        partial.mkdir()
        yield partial
        partial.replace(folder)


def _random_names(phantom: Phantom, series: _Series) -> Sequence[str]:
    """One name per slice, in no order, without an extension, as exports are."""
    random = np.random.default_rng([phantom.seed, 4, series.number])
    return [f"IM{number:06d}" for number in random.permutation(series.geometry.shape[2])]


def _common(phantom: Phantom, series: _Series) -> Dataset:
    """What all slices of a series share."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID = CTImageStorage if phantom.kind == "ct" else MRImageStorage
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.StudyInstanceUID = _uid(phantom, "study")
    instance.SeriesInstanceUID = _uid(phantom, "series", series.number, *_grid(series))
    instance.FrameOfReferenceUID = _uid(phantom, "frame of reference")
    _describe_patient_and_study(instance, phantom)
    _describe_series(instance, phantom, series)
    _describe_plane(instance, series.geometry)
    _describe_pixels(instance, phantom, series.geometry)
    return instance


def _set_slice(instance: Dataset, phantom: Phantom, series: _Series, index: int) -> None:
    """What is each slice's own; the data set is used again for the next slice."""
    instance.SOPInstanceUID = _uid(phantom, "instance", series.number, index, *_grid(series))
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.InstanceNumber = index + 1
    affine = lps_to_ras(series.geometry.affine)
    instance.ImagePositionPatient = [_decimal(value) for value in affine[:3, 3] + affine[:3, 2] * index]
    pixels = series.voxels[:, :, index].T
    lowest = _CT_INTERCEPT if phantom.kind == "ct" else 0
    highest = 4095 if phantom.kind == "ct" else 65535
    instance.PixelData = np.clip(pixels.astype(np.int32) - lowest, 0, highest).astype("<u2").tobytes()


def _grid(series: _Series) -> tuple[object, ...]:
    """Tells one series of a patient from another: the same seed may be imaged on several grids."""
    return (*series.geometry.shape, *series.geometry.affine.ravel().round(6).tolist())


def _uid(phantom: Phantom, *parts: object) -> str:
    return str(generate_uid(entropy_srcs=["medseg phantom", phantom.kind, str(phantom.seed), *map(str, parts)]))


def _describe_patient_and_study(instance: Dataset, phantom: Phantom) -> None:
    instance.PatientName = _NAMES[phantom.seed % len(_NAMES)]
    instance.PatientID = f"PHANTOM-{phantom.seed:06d}"
    instance.PatientBirthDate = f"{1940 + phantom.seed % 60}0101"
    instance.PatientSex = "FM"[phantom.seed % 2]
    instance.StudyDate = instance.SeriesDate = instance.AcquisitionDate = instance.ContentDate = "20240229"
    instance.StudyTime = instance.SeriesTime = instance.AcquisitionTime = instance.ContentTime = "093000"
    instance.AccessionNumber = ""
    instance.ReferringPhysicianName = ""
    instance.StudyID = "1"
    instance.StudyDescription = "Synthetic abdomen"


def _describe_series(instance: Dataset, phantom: Phantom, series: _Series) -> None:
    instance.Modality = phantom.kind.upper()
    instance.SeriesNumber = series.number
    instance.SeriesDescription = series.description
    instance.AcquisitionNumber = 1
    instance.ImageType = list(series.image_type)
    instance.PatientPosition = "HFS"
    instance.PositionReferenceIndicator = ""
    instance.Manufacturer = "medseg"
    instance.ManufacturerModelName = "phantom"
    instance.BodyPartExamined = "ABDOMEN"
    if phantom.kind == "ct":
        instance.KVP = 120
        return
    instance.ScanningSequence = "GR"
    instance.SequenceVariant = "SP"
    instance.ScanOptions = ""
    instance.MRAcquisitionType = "3D"
    instance.RepetitionTime = 5.0
    instance.EchoTime = 2.0
    instance.EchoTrainLength = 1
    instance.FlipAngle = 12.0


def _describe_plane(instance: Dataset, geometry: Geometry) -> None:
    """Image Plane module: the first direction is that of growing column index, the first spacing that between rows."""
    across, down, _ = geometry.directions.T * (-1, -1, 1)
    x, y, z = geometry.spacing_mm
    instance.ImageOrientationPatient = [_decimal(value) for value in (*across, *down)]
    instance.PixelSpacing = [_decimal(y), _decimal(x)]
    instance.SliceThickness = _decimal(z)


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{value:.9f}"[:16]


def _describe_pixels(instance: Dataset, phantom: Phantom, geometry: Geometry) -> None:
    instance.SamplesPerPixel = 1
    instance.PhotometricInterpretation = "MONOCHROME2"
    instance.Columns, instance.Rows, _ = geometry.shape
    instance.BitsAllocated = 16
    instance.BitsStored = 12 if phantom.kind == "ct" else 16
    instance.HighBit = instance.BitsStored - 1
    instance.PixelRepresentation = 0
    if phantom.kind == "ct":
        instance.RescaleIntercept, instance.RescaleSlope = _CT_INTERCEPT, 1
        instance.WindowCenter, instance.WindowWidth = 50, 400


_THIN_EVERY = 4
"""Of so many DICOM studies one has a thin series too, since studies differ in what they hold."""


@dataclass(frozen=True)
class WrittenPatient:
    """One patient on disk."""

    patient_id: str  # ``patient-00``, ``patient-01``, …
    image: Path  # a NIfTI file, or the folder of the main DICOM series
    label: Path  # the reference mask (NIfTI) on the grid of the image


def write_nifti(phantom: Phantom, *, image: str | Path | None = None, label: str | Path | None = None) -> None:
    """Write the image and the reference mask of a patient, either or both, as NIfTI."""
    if image is not None:
        save_nifti(phantom.image, phantom.affine, image)
    if label is not None:
        save_nifti(phantom.label, phantom.affine, label)


def write_dataset(
    folder: str | Path, count: int, *, seed: int = 0, form: Literal["dicom", "nifti"] = "dicom", **patient: Any
) -> list[WrittenPatient]:
    """Write ``count`` patients below ``folder``: ``dicom/`` or ``images/``, and ``references/``.

    Parameters
    ----------
    folder
        Made if needed.
    count
        Number of patients; patient ``n`` is ``make_patient(seed + n, **patient)``.
    seed
        Of the first patient.
    form
        DICOM studies of several series each, or one NIfTI file each.
    patient
        Further arguments of :func:`~medseg.phantom.make_patient`, such as ``kind`` or ``shape``.
    """
    return [
        _write_patient(Path(folder), number, make_patient(seed + number, **patient), form) for number in range(count)
    ]


def _write_patient(folder: Path, number: int, phantom: Phantom, form: Literal["dicom", "nifti"]) -> WrittenPatient:
    name = f"patient-{number:02d}"
    label = folder / "references" / f"{name}.nii.gz"
    write_nifti(phantom, label=label)
    if form == "dicom":
        study = write_dicom(phantom, folder / "dicom" / name, thin=number % _THIN_EVERY == 0)
        return WrittenPatient(name, study.main, label)
    image = folder / "images" / f"{name}.nii.gz"
    write_nifti(phantom, image=image)
    return WrittenPatient(name, image, label)
