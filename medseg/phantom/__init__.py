"""Synthetic patients with known anatomy: for the demo, for tests, and for benchmarks of any size."""

from __future__ import annotations

from medseg.phantom.dataset import WrittenPatient, write_dataset, write_nifti
from medseg.phantom.dicom import WrittenStudy, write_dicom
from medseg.phantom.patient import Phantom, make_patient

__all__ = [
    "Phantom",
    "WrittenPatient",
    "WrittenStudy",
    "make_patient",
    "write_dataset",
    "write_dicom",
    "write_nifti",
]
