"""Real studies: equal to their NIfTI twins, or refused with the right reason."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.errors import Refusal
from medseg.ingest import inspect_image, read_volume
from medseg.ingest.read_dicom import read_headers, read_stack
from medseg.ingest.stacks import split


def refusal_of(source: Path) -> str:
    with pytest.raises(Refusal) as caught:
        read_volume(source)
    return caught.value.code


def assert_same_volume(source: Path, twin: Path, tolerance: float = 0.0) -> None:
    """The same values at the same places, in whatever order of axes."""
    values, geometry, _ = read_volume(source)
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.astype(np.float64), geometry.affine))
    other, grid, _ = read_volume(twin)
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(other.astype(np.float64), grid.affine))
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), rtol=tolerance, atol=0)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def test_48_orientations_are_one_canonical_volume(real_data: Path) -> None:
    files = sorted((real_data / "nifti_48_orientations").rglob("*.nii*"))
    assert len(files) >= 48
    seen = set()
    first: tuple[np.ndarray, np.ndarray] | None = None
    for file in files:
        values, geometry, _ = read_volume(file)
        seen.add(geometry.orientation)
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, geometry.affine))
        array, affine = np.asanyarray(canonical.dataobj), canonical.affine
        first = first or (array, affine)
        np.testing.assert_array_equal(array, first[0], err_msg=file.name)
        np.testing.assert_allclose(affine, first[1], atol=1e-4, err_msg=file.name)
    assert len(seen) == 48


def test_dicom_equals_its_nifti_twin_exactly(real_data: Path) -> None:
    root = real_data / "ibsi_sts"
    series = root / "dicom" / "STS_002" / "MR_T1" / "image"
    assert_same_volume(series, root / "nifti" / "STS_002" / "MR_T1_image.nii.gz")


def test_pet_is_suv_and_equals_its_twin(real_data: Path) -> None:
    root = real_data / "ibsi_sts"
    series = root / "dicom" / "STS_002" / "PET" / "image"
    assert_same_volume(series, root / "nifti" / "STS_002" / "PET_image.nii.gz", tolerance=1e-5)
    _, _, facts = read_volume(series)
    assert (facts["pet"]["units"], facts["pet"]["suv_bw_factor"]) == ("GML", 1.0)


@pytest.mark.parametrize(
    ("series", "twin"),
    [
        ("generic/anatomical/001", "generic/anatomical/001_ground_truth.nii.gz"),
        ("generic/anatomical/001_implicit", "generic/anatomical/001_implicit_ground_truth.nii.gz"),
        ("generic/anatomical/002_non_isotropic", "generic/anatomical/002_non_isotropic_ground_truth.nii.gz"),
        ("generic/compressed/001", "generic/compressed/001_ground_truth.nii.gz"),
        ("generic/compressed_j2k/001", "generic/compressed_j2k/001_ground_truth.nii.gz"),
        ("generic/compressed_jpeg/001", "generic/compressed_jpeg/001_ground_truth.nii.gz"),
        ("generic/compressed_rle/001", "generic/compressed_rle/001_ground_truth.nii.gz"),
        ("hyperfine/anatomical/001", "hyperfine/anatomical/001_ground_truth.nii.gz"),
    ],
)
def test_series_of_many_vendors_equal_their_twins(real_data: Path, series: str, twin: str) -> None:
    root = real_data / "dicom2nifti_cases"
    assert_same_volume(root / series, root / twin, tolerance=1e-6)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("dicom2nifti_cases/failing/slicecount/001", "not-3d"),
        ("dicom2nifti_cases/failing/sliceincrement/001", "missing-slices"),
        ("dicom2nifti_cases/failing/notavolume/001", "duplicate-slices"),
        ("dicom2nifti_cases/ge/anatomical/001_single_slice", "single-slice"),
        ("dicom2nifti_cases/generic/rgb/001", "colour"),
        ("dicom2nifti_cases/siemens/fmri/001", "mosaic"),
        ("dicom2nifti_cases/philips_enhanced/fmri/001", "several-volumes"),
        ("ibsi_sts/dicom/STS_002/CT/mask", "not-an-image"),
        ("pydicom_data_subset/liver.dcm", "not-an-image"),
        ("pydicom_data_subset/mlut_18.dcm", "undecodable"),
        ("pydicom_data_subset/emri_small.dcm", "no-geometry"),
        ("pydicom_data_subset/JPEG2000_UNC.dcm", "no-geometry"),
        ("pydicom_data_subset/HTJ2KLossless_08_RGB.dcm", "colour"),
        ("dcmqi_seg/sr-example/sr.dcm", "not-an-image"),
        ("nifti_odd/niftirs/resources/minimal.nii", "no-geometry"),
        ("nifti_odd/niftirs/resources/rgb/3D.nii", "colour"),
        ("nifti_odd/niftirs/resources/fuzz_artifacts/crash-1.nii", "unreadable"),
        ("nifti_odd/niftireader/data/not-nifti.nii", "unreadable"),
        ("nifti_odd/niftireader/data/5D_small.nii", "not-3d"),
        ("nifti_odd/nibabel/nibabel/tests/data/example4d.nii.gz", "not-3d"),
        ("nifti_odd/nibabel/nibabel/tests/data/example_nifti2.nii.gz", "not-3d"),
        ("nifti_odd/nibabel/nibabel/tests/data/resampled_anat_moved.nii", "non-finite"),
    ],
)
def test_what_is_no_sound_volume_is_refused(real_data: Path, source: str, reason: str) -> None:
    assert refusal_of(real_data / source) == reason


def test_a_real_gantry_tilt_is_accepted_exactly(real_data: Path) -> None:
    folder = real_data / "dicom2nifti_cases" / "failing" / "gantrytilting" / "001"
    (stack,) = split(read_headers(sorted(folder.iterdir())))
    _, geometry, facts = read_stack(stack)
    assert geometry.shear_degrees == pytest.approx(14.0, abs=0.01)
    assert any("gantry tilt of 14.00°" in note for note in facts["notes"])
    for k, header in enumerate(stack.headers):
        assert header.position is not None
        first_voxel = geometry.affine @ [0, 0, k, 1]
        np.testing.assert_allclose(first_voxel[:3] * [-1, -1, 1], header.position, atol=1e-6)


def test_oblique_real_series_are_accepted(real_data: Path) -> None:
    study = real_data / "brain_mr_dicom" / "Study1"
    for name, shape in (("12-T1post-05670", (512, 512, 22)), ("36459-FLAIRreg-76244", (512, 512, 22))):
        _, geometry, facts = read_volume(study / name)
        assert geometry.shape == shape
        assert geometry.spacing_mm[2] == pytest.approx(6.5, abs=1e-3)
        assert any("gaps between slices" in note for note in facts["notes"])
    assert refusal_of(study) == "several-volumes"


@pytest.mark.parametrize("number", range(1, 5))
def test_frames_of_a_real_time_series_are_volumes(real_data: Path, number: int) -> None:
    (file,) = (real_data / "dicom2nifti_cases" / "philips_enhanced" / "fmri" / "001").iterdir()
    stacks = split(read_headers([file]))
    assert len(stacks) == 4
    values, geometry, _ = read_stack(stacks[number - 1])
    assert values.shape == geometry.shape == (64, 64, 8)


def test_every_record_agrees_with_what_is_read(real_data: Path) -> None:
    for file in sorted((real_data / "nifti_odd").rglob("*.nii*")):
        record = inspect_image(file)
        if record.usable and file.name != "resampled_anat_moved.nii":  # only its values are wrong
            assert read_volume(file)[1].shape == record.shape
        else:
            assert refusal_of(file) == (record.reason or "non-finite"), file.name
