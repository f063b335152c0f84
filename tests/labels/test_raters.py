"""Several raters' labels become one: by hand, and as SimpleITK does it."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry
from medseg.labels.label_map import LabelMap, examine
from medseg.labels.raters import majority, one_map, raters_of, staple

SHAPE = (17, 18, 19)


def raters(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Two structures with wobbly borders: every rater moves a tenth of the voxels round them."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(SHAPE, np.uint8)
    truth[6:10, 6:11, 6:12], truth[10:12, 7:12, 7:10] = 1, 2
    found = []
    for _ in range(count):
        noisy = truth.copy()
        swap = rng.random(SHAPE) < 0.1
        noisy[swap] = rng.integers(0, 3, int(swap.sum()))
        for axis in range(3):  # background round it, more than four voxels
            noisy.swapaxes(0, axis)[:5], noisy.swapaxes(0, axis)[-5:] = 0, 0
        found.append(noisy)
    return found


def label_map(array: NDArray[np.uint8], shift_mm: float = 0.0) -> LabelMap:
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    return LabelMap(array, Geometry(array.shape, affine), examine(array)[1])


def by_simpleitk(arrays: list[NDArray[np.uint8]], undecided: int) -> NDArray[np.uint8]:
    images = [sitk.GetImageFromArray(array) for array in arrays]
    return np.asarray(sitk.GetArrayFromImage(sitk.LabelVoting(images, undecided)))


def test_the_majority_by_hand() -> None:
    one, two, three = np.array([0, 1, 1, 2, 7]), np.array([0, 1, 2, 2, 0]), np.array([1, 1, 3, 0, 5])
    #          2:1 for 0 · 3:0 · tie of 1, 2, 3 → the smallest · 2:1 · tie of 0, 5, 7 → background
    assert majority([one, two, three]).tolist() == [0, 1, 1, 2, 0]
    assert majority([two, three, one]).tolist() == [0, 1, 1, 2, 0]  # whoever comes first


def test_who_did_not_judge_has_no_vote() -> None:
    one, two, three = np.array([9, 9, 9, 1]), np.array([1, 9, 0, 1]), np.array([1, 9, 9, 9])
    assert majority([one, two, three], ignore=9).tolist() == [1, 9, 0, 1]
    volumes = [one.reshape(1, 2, 2), two.reshape(1, 2, 2), three.reshape(1, 2, 2)]
    assert staple(volumes, ignore=9).ravel().tolist() == [1, 9, 0, 1]
    small = [np.array([0, 1, 2], np.uint8), np.array([0, 1, 1], np.uint8)]  # which hold no 300, and need not
    assert majority(small, ignore=300).tolist() == [0, 1, 1]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_majority_is_that_of_simpleitk(count: int) -> None:
    arrays = raters(count)
    theirs = by_simpleitk(arrays, 255)
    decided = theirs != 255
    assert np.array_equal(majority(arrays)[decided], theirs[decided])
    if count == 2:  # SimpleITK leaves every disagreement open
        assert np.array_equal(majority(arrays), np.minimum(*arrays))


@pytest.mark.parametrize("count", [3, 4])
def test_staple_is_that_of_simpleitk_in_the_box_of_the_labels(count: int) -> None:
    arrays = raters(count)
    estimate = sitk.MultiLabelSTAPLEImageFilter()
    estimate.SetLabelForUndecidedPixels(255)
    union = np.any(arrays, axis=0)
    box = tuple(slice(a.min() - 4, a.max() + 5) for a in np.nonzero(union))
    theirs = sitk.GetArrayFromImage(estimate.Execute([sitk.GetImageFromArray(array[box]) for array in arrays]))
    ours = staple(arrays)
    decided = theirs != 255
    assert np.array_equal(ours[box][decided], theirs[decided])
    assert decided.mean() > 0.9
    outside = ours.copy()
    outside[box] = 0
    assert not outside.any()
    padded = staple([np.pad(array, 5) for array in arrays])[5:-5, 5:-5, 5:-5]
    assert np.array_equal(padded, ours)  # whatever lies round it


def test_staple_believes_the_reliable() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[6:12, 6:13, 6:14] = 1
    rng = np.random.default_rng(0)
    careful = [truth.copy(), truth.copy()]
    careless = [np.where(rng.random(SHAPE) < 0.4, 0, truth).astype(np.uint8) for _ in range(3)]
    overruled = (truth == 1) & (np.sum(careless, axis=0) == 0)  # the careful two are the minority here
    arrays = [*careful, *careless]
    assert overruled.sum() > 10
    assert not majority(arrays)[overruled].any()
    assert np.array_equal(staple(arrays), truth)


def test_a_rater_on_another_grid_is_refused() -> None:
    one, two = raters(2)
    with pytest.raises(Refusal, match=r"'B' lies up to 2 mm .* that of 'A'.*onto its image's grid"):
        one_map({"A": label_map(one), "B": label_map(two, shift_mm=2.0)}, "majority")


def test_a_name_or_a_way_chooses() -> None:
    one, two = raters(2)
    maps = {"A": label_map(one), "B": label_map(two)}
    assert one_map(maps, "B").array is two
    voted = one_map(maps, "draw")
    assert np.array_equal(voted.array, np.minimum(one, two))
    assert voted.values.voxels == {int(v): int((voted.array == v).sum()) for v in np.unique(voted.array)}
    with pytest.raises(UsageError, match="'C', expected one of draw, majority, staple, A, B"):
        one_map(maps, "C")


def test_nothing_labelled_stays_nothing() -> None:
    empty = [np.zeros(SHAPE, np.uint8)] * 2
    assert not majority(empty).any()
    assert not staple(empty).any()


def test_who_the_raters_are() -> None:
    assert raters_of("a.nii.gz") == {}
    assert raters_of({"liver": "a.nii.gz"}) == {}
    assert raters_of(["a.nii.gz", {"liver": "b.nii.gz"}]) == {"1": "a.nii.gz", "2": {"liver": "b.nii.gz"}}
    assert raters_of([{"rater": "A", "label": "a.nii.gz"}]) == {"A": "a.nii.gz"}
    with pytest.raises(UsageError, match="two raters of one case are called 'A'"):
        raters_of([{"rater": "A", "label": "a"}, {"rater": "A", "label": "b"}])
    with pytest.raises(UsageError, match="rater 'A' has no label"):
        raters_of([{"rater": "A"}])
