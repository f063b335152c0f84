"""Synthetic patients with known anatomy: for the demo, for tests, and for benchmarks of any size."""

from __future__ import annotations

from medseg.phantom.patient import Phantom, make_patient
from medseg.phantom.write import WrittenPatient, WrittenStudy, write_dataset, write_dicom, write_nifti

__all__ = [
    "Phantom",
    "WrittenPatient",
    "WrittenStudy",
    "make_patient",
    "write_dataset",
    "write_dicom",
    "write_nifti",
]
