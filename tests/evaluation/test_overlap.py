from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.evaluation.overlap import VoxelCounts, detect_lesions, find_boxes


def test_counts_give_the_ratios() -> None:
    counts = VoxelCounts(both=6, prediction=8, reference=12, image=100)
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (0.6, 6 / 14, 0.75, 0.5)
    assert counts.specificity == 86 / 88


def test_a_reference_that_fills_the_image_has_no_specificity() -> None:
    assert VoxelCounts(both=8, prediction=8, reference=8, image=8).specificity is None


def spots(*places: tuple[int, int]) -> Any:
    volume = np.zeros((12, 12, 12), dtype=bool)
    for start, length in places:
        volume[start : start + length, 2:4, 2:4] = True
    return volume


def test_lesions_are_counted_and_not_their_voxels() -> None:
    reference, prediction = spots((0, 1), (3, 5)), spots((3, 1), (10, 2))
    scores = detect_lesions(prediction, reference)
    assert (scores.predicted, scores.predicted_right, scores.reference, scores.reference_found) == (2, 1, 2, 1)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)


def test_a_demanded_overlap_is_demanded() -> None:
    reference, prediction = spots((3, 5)), spots((3, 1))
    assert detect_lesions(prediction, reference).recall == 1.0
    assert detect_lesions(prediction, reference, overlap=0.5).recall == 0.0


def test_connectivity_decides_what_is_one_lesion() -> None:
    diagonal = np.zeros((4, 4, 4), dtype=bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = True
    assert detect_lesions(diagonal, diagonal, connectivity=26).reference == 1
    assert detect_lesions(diagonal, diagonal, connectivity=6).reference == 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 3), (5, 5, 5), (101, 1, 1)])
def test_lesions_of_single_voxels_packed_densely_are_counted(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    lesions = detect_lesions(mask, mask)
    assert (lesions.predicted, lesions.reference_found) == (int(mask.sum()), int(mask.sum()))


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
    n_labelled=st.integers(0, 5),
    data=st.data(),
)
def test_every_label_lies_in_its_box(shape: Any, dtype: Any, n_labelled: int, data: st.DataObject) -> None:
    volume = np.zeros(shape, dtype=dtype)
    for _ in range(n_labelled):
        volume[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = data.draw(st.integers(0, 120))
    boxes = find_boxes(volume)
    assert sorted(boxes) == [int(value) for value in np.unique(volume) if value]
    for label, box in boxes.items():
        outside = volume.copy()
        outside[box] = 0
        assert not (outside == label).any()
        assert all(0 <= side.start < side.stop <= n for side, n in zip(box, shape, strict=True))


@settings(max_examples=25, deadline=None)
@given(volume=hnp.arrays(np.uint8, (3, 5, 16), elements=st.integers(0, 2)))
def test_boxes_are_tight_to_a_word(volume: Any) -> None:
    for label, (i, j, k) in find_boxes(volume).items():
        places = np.argwhere(volume == label)
        low, high = places.min(axis=0), places.max(axis=0)
        assert (i.start, i.stop, j.start, j.stop) == (low[0], high[0] + 1, low[1], high[1] + 1)
        assert low[2] - k.start < 8
        assert k.stop - high[2] <= 8


def test_nothing_has_no_box() -> None:
    assert find_boxes(np.zeros((4, 5, 6), np.uint8)) == {}


@pytest.mark.parametrize("where", [(0, 0, 0), (2, 2, 2), (1, 2, 2), (2, 0, 1)])
def test_rows_that_share_a_word_are_told_apart_generously(where: tuple[int, int, int]) -> None:
    volume = np.zeros((3, 3, 3), np.uint8)
    volume[where] = 7
    i, j, k = find_boxes(volume)[7]
    assert volume[i, j, k].sum() == 7
