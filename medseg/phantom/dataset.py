"""Many synthetic patients at once, as DICOM studies or NIfTI files, with their reference masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg.ingest import save_nifti
from medseg.phantom.dicom import write_dicom
from medseg.phantom.patient import Phantom, make_patient

__all__ = ["WrittenPatient", "write_dataset", "write_nifti"]

_THIN_EVERY = 4
"""Of so many DICOM studies one has a thin series too, since studies differ in what they hold."""


@dataclass(frozen=True)
class WrittenPatient:
    """One patient on disk.

    Attributes
    ----------
    patient_id
        ``patient-00``, ``patient-01``, …
    image
        A NIfTI file, or the folder of the main DICOM series.
    label
        The reference mask (NIfTI) on the grid of the image.
    """

    patient_id: str
    image: Path
    label: Path


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
