"""Label maps: whole numbers that are declared, or a refusal with value, count and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import Refusal
from medseg.labels.label_map import check_labels, examine, fault_of, find_boxes, joined, read_label_map
from tests.ingest.trees import write_series

NAMES = {1: "anterior", 2: "posterior"}


def label() -> np.ndarray:
    array = np.zeros((6, 5, 4), np.int16)
    array[1:3] = 1
    array[3:4, :2] = 2
    return array


def save(array: np.ndarray, path: Path) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_whole_numbers_of_any_type_are_read(dtype: Any, order: Any) -> None:
    labels, values = check_labels(np.array(label(), dtype=dtype, order=order), "it", declared=NAMES)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, label())
    assert values.voxels == {0: 72, 1: 40, 2: 8}
    assert values.rounded_by == 0.0


def test_rounding_noise_is_rounded_never_truncated() -> None:
    labels, values = check_labels((label() * 0.99999).astype(np.float32), "it", declared=NAMES)
    np.testing.assert_array_equal(labels, label())
    assert values.rounded_by == pytest.approx(2e-5, rel=0.1)


@pytest.mark.parametrize("value", [0.5, 1.002, np.nan, -0.1])
def test_fractional_labels_have_one_true_reason(value: float) -> None:
    array = label().astype(np.float32)
    array[0, 0, :3] = value
    values = examine(array)[1]
    fault = fault_of(values, {7: "other"})
    assert fault is not None
    assert fault.code == "fractional-labels"
    assert "the labels are not whole numbers: 3 voxels" in fault.message
    assert values.voxels == {0: 69, 1: 40, 2: 8}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "7 in 4 voxels, declared are 0 (background), 1 (anterior) and 2 (posterior)"),
        (-1, "-1 in 4 voxels, expected whole numbers from 0 to 65535"),
        (70000, "70000 in 4 voxels, expected whole numbers from 0 to 65535"),
        (1e12, "expected whole numbers from 0 to 65535"),
    ],
)
def test_values_that_are_not_declared_are_refused_with_the_remedy(value: float, words: str) -> None:
    array = label().astype(np.float64)
    array[0, 0] = value
    with pytest.raises(Refusal) as refusal:
        check_labels(array, "the label case.nii", declared=NAMES)
    assert refusal.value.code == "unexpected-labels"
    assert str(refusal.value).startswith("[unexpected-labels] the label case.nii: ")
    assert words in refusal.value.message
    assert "--map" in refusal.value.message


def test_many_values_are_summed_up() -> None:
    with pytest.raises(Refusal, match="115 more values"):
        check_labels(np.arange(120, dtype=np.int16).reshape(6, 5, 4) + 3, "it", declared=NAMES)


def test_nothing_declared_allows_every_label() -> None:
    labels, _ = check_labels(np.full((2, 2, 2), 300, np.int32), "it")
    assert labels.dtype == np.uint16
    assert labels.max() == 300


def test_a_mapping_renumbers_before_the_values_are_judged() -> None:
    array = np.select([label() == 1, label() == 2], [-7, 200000], 0)
    labels, values = check_labels(array, "it", declared=NAMES, mapping={-7: 1, 200000: 2})
    np.testing.assert_array_equal(labels, label())
    assert values.voxels == {0: 72, 1: 40, 2: 8}
    shifted, _ = check_labels(label() + 1, "it", declared=NAMES, mapping={1: 0, 2: 1, 3: 2})
    np.testing.assert_array_equal(shifted, label())


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-300, 70000), min_size=8, max_size=8),
    mapping=st.dictionaries(st.integers(-300, 70000), st.integers(0, 65535), max_size=4),
)
def test_mapping_and_counting_by_hand(values: list[int], mapping: dict[int, int]) -> None:
    array = np.array(values, dtype=np.int32).reshape(2, 2, 2)
    meant = [mapping.get(value, value) for value in values]
    labels, found = examine(array, mapping)
    assert found.voxels == {value: meant.count(value) for value in sorted(set(meant))}
    if fault_of(found) is None:
        assert labels.ravel().tolist() == meant


def test_a_file_is_read_with_its_grid(tmp_path: Path) -> None:
    found = read_label_map(save(label(), tmp_path / "case.nii.gz"), declared=NAMES)
    np.testing.assert_array_equal(found.array, label())
    assert found.volumes_ml == {1: pytest.approx(0.04), 2: pytest.approx(0.008)}


def test_one_channel_per_structure_is_no_label_map(tmp_path: Path) -> None:
    one_hot = np.stack([label() == value for value in range(3)], axis=-1).astype(np.uint8)
    with pytest.raises(Refusal, match="join one channel per structure into one map") as refusal:
        read_label_map(save(one_hot, tmp_path / "case.nii.gz"))
    assert refusal.value.code == "not-3d"


def test_missing_and_unreadable_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"the label gone\.nii does not exist"):
        read_label_map(tmp_path / "gone.nii")
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(Refusal, match=r"the label text\.nii: "):
        read_label_map(tmp_path / "text.nii")


def test_a_folder_of_objects_is_no_label_map(tmp_path: Path) -> None:
    write_series(tmp_path, "1", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    with pytest.raises(Refusal, match="name the file itself"):
        read_label_map(tmp_path)


def test_reading_labels_needs_no_decoders(tmp_path: Path) -> None:
    """MONAI Label's environment has pydicom 2, which has none; its trainings read label maps."""
    code = "import pydicom.pixels as p; del p.iter_pixels, p.get_decoder; import medseg.labels.read, medseg.manifests"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ["C", "F"])
@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
    n_labelled=st.integers(0, 5),
    data=st.data(),
)
def test_every_label_has_its_smallest_box(
    order: Any, shape: tuple[int, int, int], dtype: Any, n_labelled: int, data: st.DataObject
) -> None:
    volume = np.zeros(shape, dtype, order)
    for _ in range(n_labelled):
        volume[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = data.draw(st.integers(0, 120))
    boxes = find_boxes(volume)
    assert sorted(boxes) == [int(value) for value in np.unique(volume) if value]
    for value, box in boxes.items():
        places = np.argwhere(volume == value)
        low, high = places.min(axis=0), places.max(axis=0)
        assert [(side.start, side.stop) for side in box] == [(a, b + 1) for a, b in zip(low, high, strict=True)]


def test_nothing_has_no_box() -> None:
    assert find_boxes(np.zeros((4, 5, 6), np.uint8)) == {}


def test_boxes_are_joined() -> None:
    boxes = ((slice(3, 4), slice(0, 2), slice(1, 2)), (slice(1, 2), slice(1, 2), slice(1, 5)))
    assert joined(boxes) == (slice(1, 4), slice(0, 2), slice(1, 5))
    assert joined([]) == ()
