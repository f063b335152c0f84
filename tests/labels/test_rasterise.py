"""Polygons to pixels, by hand and by brute force."""

from __future__ import annotations

import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medseg.labels import rasterise
from medseg.labels.rasterise import fill_plane, fill_polygon

SQUARE = np.array([[1, 1], [1, 5], [5, 5], [5, 1]], dtype=float)
HOLE = np.array([[2, 2], [2, 4], [4, 4], [4, 2]], dtype=float)
PLANE = (7, 7)


def drawn(text: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in line.strip()] for line in text.strip().splitlines()])


def test_centres_on_an_outline_belong_to_the_structure() -> None:
    expected = drawn("""
        .......
        .#####.
        .#####.
        .#####.
        .#####.
        .#####.
        .......""")
    np.testing.assert_array_equal(fill_plane([SQUARE], PLANE).inside, expected)
    np.testing.assert_array_equal(fill_plane([SQUARE[::-1]], PLANE).inside, expected)


def test_a_hole_keeps_its_outline() -> None:
    expected = fill_plane([SQUARE], PLANE).inside.copy()
    expected[3, 3] = False
    np.testing.assert_array_equal(fill_plane([SQUARE, HOLE], PLANE).inside, expected)
    np.testing.assert_array_equal(fill_plane([HOLE, SQUARE], PLANE).inside, expected)


@pytest.mark.parametrize("gate", [0, 3])
def test_a_keyhole_is_a_hole_whose_channel_has_no_width(gate: int) -> None:
    around = [*SQUARE, SQUARE[0], *np.roll(HOLE, gate, axis=0), np.roll(HOLE, gate, axis=0)[0]]
    found = fill_plane([np.array(around)], PLANE)
    np.testing.assert_array_equal(found.inside, fill_plane([SQUARE, HOLE], PLANE).inside)


def test_two_islands_on_one_line_are_not_joined_by_it() -> None:
    left, right = SQUARE * (1, 0.25), SQUARE * (1, 0.25) + (0, 4.25)
    joined = np.array([*left[:2], right[0], *right[1:], right[0], *left[1:]])
    apart = fill_plane([left, right], PLANE).inside
    np.testing.assert_array_equal(fill_plane([joined], PLANE).inside, apart)
    assert not apart[:, 3].any()


def test_islands_and_repeated_polygons() -> None:
    other = SQUARE * 0.25 + 5.5
    found = fill_plane([SQUARE, other, SQUARE[::-1], np.roll(SQUARE, 1, axis=0)], (9, 9))
    assert found.repeated == 2
    assert found.inside.sum() == 25 + 1
    assert found.crossing == 0


def test_islands_are_not_held_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of bone or vessels has hundreds: every one with every other took seconds a slice."""
    compared = Mock(return_value=0)
    monkeypatch.setattr(rasterise, "_shared", compared)
    islands = [SQUARE * 0.25 + (3 * row, 3 * column) for row in range(20) for column in range(20)]
    assert fill_plane(islands, (64, 64)).inside.sum() == 400
    compared.assert_not_called()
    fill_plane([SQUARE, HOLE], PLANE)
    compared.assert_called()


def test_polygons_that_cross_are_counted() -> None:
    found = fill_plane([SQUARE - 0.25, SQUARE + np.array([0.75, 0.75])], PLANE)
    assert found.crossing > 0


def test_nothing_is_drawn_outside_of_the_plane() -> None:
    assert fill_plane([SQUARE + 100, SQUARE - 100], PLANE).inside.sum() == 0
    np.testing.assert_array_equal(fill_plane([SQUARE * 1e6 - 3e6], PLANE).inside, True)
    np.testing.assert_array_equal(fill_plane([SQUARE - 3], PLANE).inside, fill_plane([SQUARE], (10, 10)).inside[3:, 3:])


def by_brute_force(points: NDArray[np.float64], pixel: tuple[int, int]) -> bool:
    """Even-odd by whole numbers, or on an edge."""
    row, column = pixel
    inside = False
    for (a, b), (c, d) in zip(
        points.astype(int).tolist(), np.roll(points, -1, axis=0).astype(int).tolist(), strict=True
    ):
        cross = (row - a) * (d - b) - (column - b) * (c - a)
        if cross == 0 and min(a, c) <= row <= max(a, c) and min(b, d) <= column <= max(b, d):
            return True
        if (a > row) != (c > row) and (cross > 0) == (c > a):
            inside = not inside
    return inside


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9)), min_size=3, max_size=9, unique=True))
def test_any_polygon_by_brute_force(corners: list[tuple[int, int]]) -> None:
    points = np.array(corners, dtype=float)
    found = fill_plane([points], PLANE).inside
    expected = [[by_brute_force(points, (row, column)) for column in range(7)] for row in range(7)]
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=100)
@given(arrays(np.float64, (6, 2), elements=st.floats(0, 6)), st.floats(-3e-5, 3e-5))
def test_the_rounding_of_decimal_numbers_does_not_decide(points: NDArray[np.float64], noise: float) -> None:
    whole = np.rint(points)
    np.testing.assert_array_equal(fill_plane([whole + noise], PLANE).inside, fill_plane([whole], PLANE).inside)


def test_an_outline_to_and_fro_fills_no_memory() -> None:
    zigzag = np.stack([np.tile([0.0, 255.0], 20_000), np.linspace(0, 250, 40_000)], axis=1)
    tracemalloc.start()
    fill_polygon(zigzag, (256, 256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6  # all crossings at once would be 10 million, some 600 MB
