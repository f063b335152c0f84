"""Where head and body of a hippocampus meet: the slice, what is on its wrong side, and what another slice costs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.head_body_border import BODY, HEAD, Labels, border, dice, redrawn


def _rod(first: int) -> Labels:
    """Ten slices of 2 × 2 voxels, body below the slice ``first`` and head from it on."""
    label = np.zeros((4, 14, 4), np.int64)
    label[1:3, 2:first, 1:3], label[1:3, first:12, 1:3] = BODY, HEAD
    return label


def test_the_slice_that_parts_them_is_found_and_redrawn_as_it_was() -> None:
    assert border(_rod(7)) == (7, 0)
    assert np.array_equal(redrawn(_rod(5), 7), _rod(7))


def test_voxels_on_the_wrong_side_are_counted_and_straightened() -> None:
    ragged = _rod(7)
    ragged[1, 7, 1], ragged[2, 5, 2] = BODY, HEAD
    assert border(ragged) == (7, 2)
    assert np.array_equal(redrawn(ragged, 7), _rod(7))


def test_a_slice_aside_costs_what_can_be_reckoned() -> None:
    # head 5 and body 5 slices; found 4 and 6: 2·4/9 and 2·5/11
    assert dice(_rod(8), _rod(7)) == pytest.approx((8 / 9 + 10 / 11) / 2)
    assert dice(redrawn(_rod(8), 7), _rod(7)) == 1.0
