"""Small images for :mod:`benchmarks.zoo`, by name: of the right modality and channels, as NIfTI and as DICOM."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.files import write_json
from medseg.ingest import read_volume
from medseg.ingest.nifti import save_nifti
from medseg.phantom import make_patient, write_dicom


def _nifti(folder: Path, name: str, values: NDArray[Any], affine: NDArray[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_nifti(values, affine, folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def _listed(folder: Path, images: Sequence[Path]) -> Path:
    """A datalist of one case that has several channels."""
    write_json(folder / "datalist.json", {"test": [{"image": [str(file) for file in images]}]})
    return folder / "datalist.json"


Recipe = Callable[[Path, Path], tuple[list[Path], Path]]
"""From where to write, and the folder of real data, to the files that MONAI gets, and to what medseg gets."""


def _file(folder: Path, source: Path) -> tuple[list[Path], Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(source, folder / "a.nii.gz"))], folder / "a.nii.gz"


def _series(folder: Path, source: Path) -> tuple[list[Path], Path]:
    values, geometry, _ = read_volume(source)
    return [_nifti(folder, "a", values, geometry.affine)], source


def _phantom_series(folder: Path, _: Path) -> tuple[list[Path], Path]:
    study = write_dicom(make_patient(3, "ct", shape=(80, 72, 40)), folder / "dicom", thin=False)
    return _series(folder, study.main)


def _slices(folder: Path, data: Path) -> tuple[list[Path], Path]:
    files, _ = _series(folder, data / "brain_mr_dicom" / "Study1" / "12-T1post-05670")
    return files, files[0]


def _channels(
    kind: Any, number: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None = None
) -> Recipe:
    """One anatomy in several contrasts, on one grid."""

    def write(folder: Path, _: Path) -> tuple[list[Path], Path]:
        patient = make_patient(5, kind, shape=shape, spacing_mm=spacing_mm, oblique_degrees=8)
        values = patient.image.astype(np.float32)
        top = float(values.max())
        contrasts = [values, values**2 / top, top * np.sqrt(np.maximum(values, 0) / top), np.maximum(values, 0) + 1]
        files = [_nifti(folder, f"c{n}", contrasts[n], patient.affine) for n in range(number)]
        return files, files[0] if number == 1 else _listed(folder, files)

    return write


def _small_ct(folder: Path, data: Path) -> tuple[list[Path], Path]:
    values, geometry, _ = read_volume(data / _CT)
    file = _nifti(folder, "a", values[:145, :121, :19], geometry.affine)
    return [file], file


_CT = "msd_spleen2_crop/ct_scan/sub-spleen2/ct/sub-spleen2_ct.nii.gz"
IMAGES: dict[str, Recipe] = {
    "ct": lambda to, data: _file(to, data / _CT),
    "ct-small": _small_ct,
    "ct-dicom": _phantom_series,
    "ct-window": _channels("ct", 1, (40, 40, 24), (2.0, 2.0, 3.0)),
    "ct3": _channels("ct", 3, (36, 36, 24), (2.0, 2.0, 3.0)),
    "hippocampus": lambda to, data: _file(to, data / "msd_hippocampus/imagesTr/hippocampus_001.nii.gz"),
    "mr-dicom": lambda to, data: _series(to, data / "brain_mr_dicom/Study1/13_HCropVolume"),
    "slices": _slices,
    "slices-dicom": lambda to, data: _series(to, data / "brain_mr_dicom/Study1/12-T1post-05670"),
    "brain": _channels("mr", 1, (96, 96, 64)),
    "brain4": _channels("mr", 4, (96, 80, 48)),
    "multiple-of-16": _channels("mr", 1, (64, 48, 48)),
}
