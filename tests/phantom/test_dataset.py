from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.ingest import read_volume
from medseg.phantom import make_patient, write_dataset, write_nifti

SMALL = (24, 24, 12)


def test_nifti_holds_image_and_mask_on_one_grid(tmp_path: Path) -> None:
    patient = make_patient(1, "mr", shape=SMALL)
    write_nifti(patient, image=tmp_path / "image.nii.gz", label=tmp_path / "label.nii.gz")
    image, label = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("image", "label"))
    assert np.array_equal(np.asarray(image.dataobj), patient.image)
    assert np.array_equal(np.asarray(label.dataobj), patient.label)
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, patient.affine, atol=1e-4)
    np.testing.assert_array_equal(image.affine, label.affine)


def test_either_file_may_be_left_out(tmp_path: Path) -> None:
    write_nifti(make_patient(1, shape=SMALL), label=tmp_path / "label.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["label.nii.gz"]


def test_a_nifti_data_set_has_flat_folders(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, 2, form="nifti", shape=SMALL)
    assert [patient.image.relative_to(tmp_path).as_posix() for patient in written] == [
        "images/patient-00.nii.gz",
        "images/patient-01.nii.gz",
    ]
    assert all(patient.label.parent.name == "references" for patient in written)


@pytest.mark.parametrize("form", ["dicom", "nifti"])
def test_a_dataset_pairs_every_image_with_its_mask(form: str, tmp_path: Path) -> None:
    written = write_dataset(tmp_path, 3, seed=7, form=form, shape=(16, 16, 8))  # type: ignore[arg-type]
    assert [patient.patient_id for patient in written] == ["patient-00", "patient-01", "patient-02"]
    for number, patient in enumerate(written):
        image, image_grid, _ = read_volume(patient.image)
        label, label_grid, _ = read_volume(patient.label)
        expected = make_patient(7 + number, shape=(16, 16, 8))
        assert np.array_equal(image, expected.image)
        assert np.array_equal(label, expected.label)
        assert image_grid.matches(label_grid)
