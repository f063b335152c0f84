from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.evaluation.overlap import find_boxes


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
