"""Objects of other writers against the label maps that belong to them."""

from __future__ import annotations

import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.ingest import read_volume
from medseg.labels import LabelMap, LabelScheme, ReadingRules, read_label

COLOURS = {0: "background", 1: "GREEN", 2: "ORANGE", 3: "PURPLE", 4: "LIGHT_BLUE", 5: "DARK_BLUE"}
TUMOUR = LabelScheme({0: "background", 1: "tumour"})


def on_grid_of(found: LabelMap, path: Path) -> NDArray[np.int64]:
    """The values of a label map, each at its place in the grid of another."""
    array, geometry, _ = read_volume(path)
    index = np.argwhere(array != 0)
    step = np.linalg.solve(found.geometry.affine, geometry.affine)
    exact = index @ step[:3, :3].T + step[:3, 3]
    assert np.abs(exact - np.rint(exact)).max() < 0.02
    placed = np.zeros(found.array.shape, np.int64)
    placed[tuple(np.rint(exact).astype(int).T)] = array[tuple(index.T)]
    return placed


@pytest.mark.parametrize(
    ("label", "image", "expected"),
    [
        ("liver.dcm", "ct-3slice", "liver_seg.nrrd"),
        ("24x38x3/seg/label.seg", "24x38x3/image", "24x38x3/nrrd/label.nrrd"),
        ("24x38x3/seg/label.seg", "24x38x3/multiframe", "24x38x3/nrrd/label.nrrd"),
        ("23x38x3/seg/label.seg", "23x38x3/image", "23x38x3/nrrd/label.nrrd"),
        ("sparse-labelmap-noppv.dcm", "24x38x3/image", "sparse_labelmap_noppv_seg.nrrd"),
        ("sparse-labelmap-ppv5.dcm", "24x38x3/image", "sparse_labelmap_ppv5_seg.nrrd"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_segmentations_of_dcmqi(real_data: Path, label: str, image: str, expected: str, alone: bool) -> None:
    folder = real_data / "dcmqi_seg" / "segmentations"
    names = LabelScheme({0: "background", 1: "Liver"})
    found = read_label(folder / label, scheme=names, image=None if alone else folder / image)
    np.testing.assert_array_equal(found.array == 1, on_grid_of(found, folder / expected) == 1)


def test_segments_of_dcmqi_that_overlap_partly(real_data: Path) -> None:
    """Each by itself is what dcmqi says; together they are refused."""
    folder = real_data / "dcmqi_seg" / "segmentations"
    path, image = folder / "partial_overlaps.dcm", folder / "ct-3slice"
    with pytest.raises(Refusal, match="GREEN and ORANGE overlap in 3017 voxels"):
        read_label(path, scheme=LabelScheme(COLOURS), image=image)
    seen = 0
    for name in list(COLOURS.values())[1:]:
        rules = ReadingRules({other: None for other in COLOURS.values() if other not in (name, "background")})
        found = read_label(path, scheme=LabelScheme(COLOURS), rules=rules, image=image)
        value = next(v for v, n in COLOURS.items() if n == name)
        expected = [on_grid_of(found, folder / f"partial_overlaps-{n}.nrrd") == value for n in (1, 2, 3)]
        assert any(np.array_equal(found.array == value, one) for one in expected), name
        seen += 1
    assert seen == 5


@pytest.mark.parametrize(
    "name", ["ct_binary", "ct_binary_fractional", "ct_binary_single_frame", "ct_true_fractional", "ct_binary_overlap"]
)
def test_segmentations_of_highdicom_as_highdicom_reads_them(real_data: Path, name: str) -> None:
    path = real_data / "highdicom_seg" / "data" / "test_files" / f"seg_image_{name}.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = hd.seg.segread(path)
        numbers = list(theirs.segment_numbers)
        volume = theirs.get_volume(combine_segments=False, rescale_fractional=True)
    names = LabelScheme({number: theirs.get_segment_description(number).segment_label for number in numbers})
    for place, number in enumerate(numbers):
        rules = ReadingRules({other: None for n, other in names.names.items() if n != number})
        found = read_label(path, scheme=names, rules=rules)
        expected = np.asarray(volume.array)[..., place] >= 0.5
        index = np.argwhere(expected)
        step = np.linalg.solve(found.geometry.affine, np.diag([-1, -1, 1, 1]) @ volume.affine)
        placed = np.zeros(found.array.shape, bool)
        placed[tuple(np.rint(index @ step[:3, :3].T + step[:3, 3]).astype(int).T)] = True
        np.testing.assert_array_equal(found.array == number, placed)


@pytest.mark.parametrize("name", ["cr_binary", "sm_control_labelmap"])
def test_what_lies_nowhere_in_a_patient_is_refused(real_data: Path, name: str) -> None:
    path = real_data / "highdicom_seg" / "data" / "test_files" / f"seg_image_{name}.dcm"
    with pytest.raises(Refusal) as refusal:
        read_label(path, scheme=LabelScheme({1: "first segment"}))
    assert refusal.value.code == "no-geometry"


@pytest.mark.parametrize("modality", ["MR_T1", "PET"])
def test_structure_sets_equal_their_twin_masks(real_data: Path, modality: str) -> None:
    """Voxel for voxel; 12 centres of the PET lie exactly on an outline, and count."""
    study = real_data / "ibsi_sts" / "dicom" / "STS_002" / modality
    rules = ReadingRules({f"GTV_Mass_{modality}": "tumour"})
    found = read_label(study / "mask" / "RS.dcm", scheme=TUMOUR, rules=rules, image=study / "image")
    twin = on_grid_of(found, real_data / "ibsi_sts" / "nifti" / "STS_002" / f"{modality}_mask.nii.gz")
    np.testing.assert_array_equal(found.array, twin)
    assert found.notes == ()


def test_a_structure_set_on_the_image_of_another_modality(real_data: Path) -> None:
    """Both lie in one frame of reference and share their slices: taken, and noted."""
    study = real_data / "ibsi_sts" / "dicom" / "STS_002"
    rules = ReadingRules({"GTV_Mass_MR_T1": "tumour"})
    path = study / "MR_T1" / "mask" / "RS.dcm"
    found = read_label(path, scheme=TUMOUR, rules=rules, image=study / "PET" / "image")
    assert found.notes == ("the label RS.dcm refers to another series of its image's frame of reference",)
    own = read_label(path, scheme=TUMOUR, rules=rules, image=study / "MR_T1" / "image")
    assert found.volumes_ml[1] == pytest.approx(own.volumes_ml[1], rel=0.05)
