"""Parts, sides and crops, by geometry that a hand can check."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.inference.locate import CropRule, Found, Side, find_parts

GRID = Geometry((60, 40, 30), np.diag([1.0, 1.0, 1.0, 1.0]))
ANY: tuple[tuple[tuple[int, ...], Side | None], ...] = (((1,), None),)
RULE = CropRule(2.0, (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
Labels = NDArray[np.uint8]


def volume(*cubes: tuple[int, int, int, int, int]) -> Labels:
    """Cubes by low corner, edge and value, and landmarks (9) that put the middle at i = 29.5."""
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[0, 20, 15] = labels[59, 20, 15] = 9
    for i, j, k, edge, value in cubes:
        labels[i : i + edge, j : j + edge, k : k + edge] = value
    return labels


def find(labels: Labels, *, sides: bool = True, rule: CropRule = RULE, grid: Geometry = GRID) -> Found:
    return find_parts(labels, grid, ANY, rule, sides=sides)


def test_a_crop_is_the_part_and_its_margin_within_what_training_saw() -> None:
    labels = volume((10, 20, 10, 4, 1), (40, 20, 10, 8, 1))
    found = find(labels)
    assert [(part.side, part.voxels) for part in found.parts] == [("right", 512), ("left", 64)]
    assert found.crops[0].slices == (slice(38, 50), slice(18, 30), slice(8, 20))  # 8 + 2 · 2 voxels
    assert found.crops[1].slices == (slice(7, 17), slice(17, 27), slice(7, 17))  # 4 + 2 · 2, but at least 10
    assert find(labels, rule=CropRule(9.0, None, (20.0,) * 3)).crops[0].slices[0] == slice(34, 54)  # at most 20
    assert find(labels, rule=CropRule(0.0)).crops[0].slices[0] == slice(40, 48)
    with pytest.raises(Refusal, match=r"8.00×8.00×8.00 mm .* at most 7.00") as caught:
        find(labels, rule=CropRule(0.0, None, (7.0, 7.0, 7.0)))
    assert caught.value.code == "not-located"


def test_extents_are_along_the_patients_axes_in_millimetres() -> None:
    grid = Geometry((60, 40, 30), np.array([[0, 0, -2.0, 0], [0.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]]))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[30:34, 20:24, 20:22] = 1  # 2 × 4 × 4 mm along posterior-anterior, inferior-superior, left-right
    labels[0, 0, 0] = labels[0, 0, 29] = 9
    found = find(labels, rule=CropRule(0.0, (12.0, 3.0, 5.0), (20.0, 20.0, 20.0)), grid=grid)
    assert found.parts[0].side == "left"  # x falls with k
    low, high = found.crops[0].low, found.crops[0].high
    assert np.subtract(high, low).tolist() == [6, 5, 6]


def test_a_crop_moves_inwards_at_the_border_and_ends_with_the_grid() -> None:
    labels = volume((0, 0, 0, 4, 1), (50, 36, 26, 4, 1))
    assert sorted((crop.low, crop.high) for crop in find(labels).crops) == [
        ((0, 0, 0), (10, 10, 10)),
        ((47, 30, 20), (57, 40, 30)),
    ]
    wide = find(labels, rule=CropRule(0.0, (10.0, 50.0, 10.0)))
    assert wide.crops[0].slices[1] == slice(0, 40)


def test_small_parts_are_dropped_and_others_of_a_side_joined_or_noted() -> None:
    speck = volume((10, 20, 10, 6, 1), (40, 20, 10, 8, 1), (20, 5, 5, 3, 1))  # 27 of 512 voxels
    assert find(speck).notes == ()
    assert len(find(speck).parts) == 2
    near = volume((10, 20, 10, 6, 1), (10, 20, 18, 5, 1), (40, 20, 10, 8, 1))
    joined = find(near)
    assert {part.voxels for part in joined.parts} == {216 + 125, 512}
    assert joined.crops[1].slices[2] == slice(8, 25)  # from 10 to 22, and 2 on either side
    far = find(volume((10, 2, 2, 7, 1), (10, 32, 20, 6, 1), (40, 20, 10, 8, 1)))
    assert {part.voxels for part in far.parts} == {343, 512}
    assert far.notes == ("left out: further parts of 0.22 ml",)


def test_without_sides_each_part_has_its_crop() -> None:
    found = find(volume((10, 2, 2, 6, 1), (10, 32, 20, 5, 1), (40, 20, 10, 8, 1)), sides=False)
    assert [(part.side, part.voxels) for part in found.parts] == [(None, 512), (None, 216), (None, 125)]


def test_nothing_found_is_no_empty_result() -> None:
    with pytest.raises(Refusal, match="not found") as caught:
        find(volume())
    assert caught.value.code == "not-located"


def test_one_side_alone_is_noted() -> None:
    found = find(volume((40, 20, 10, 8, 1)))
    assert [part.side for part in found.parts] == ["right"]
    assert found.notes == ("no left one was found",)


def test_a_side_that_hangs_on_one_guess_is_refused() -> None:
    labels = volume((40, 20, 10, 8, 1))
    labels[0, 20, 15], labels[50, 20, 15] = 0, 9  # all that is labelled lies from 40 to 50, of the image's 0 to 59
    labels[58, 20, 15] = 9
    with pytest.raises(Refusal, match="the middle of the image says otherwise"):
        find(labels)
    alike = volume((35, 2, 2, 6, 1), (50, 32, 20, 6, 1))
    with pytest.raises(Refusal, match="two like parts"):
        find(alike)
    with pytest.raises(Refusal, match="across the patient's middle"):
        find(volume((26, 20, 10, 8, 1)))


def test_a_side_that_the_label_map_names_must_agree_with_the_geometry() -> None:
    labels = volume((10, 20, 10, 6, 1), (40, 20, 10, 8, 2))
    named: list[tuple[tuple[int, ...], Side | None]] = [((1,), "left"), ((2,), "right")]
    assert {part.side for part in find_parts(labels, GRID, named, RULE, sides=True).parts} == {"left", "right"}
    mirrored = Geometry(GRID.shape, np.array([[-1.0, 0, 0, 59], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    with pytest.raises(Refusal, match="is the image mirrored") as caught:
        find_parts(labels, mirrored, named, RULE, sides=True)
    assert caught.value.code == "not-located"


def test_two_like_parts_on_one_side_are_not_both_sides_in_one() -> None:
    wide = CropRule(2.0, None, (40.0, 40.0, 40.0))
    both = volume((35, 20, 10, 6, 1), (46, 20, 10, 6, 1))  # together they would fit into one crop
    with pytest.raises(Refusal, match="two like parts"):
        find(both, rule=wide)
    speck = volume((35, 2, 2, 6, 1), (50, 32, 20, 6, 1), (10, 5, 5, 3, 1))  # and a small one on the other side
    with pytest.raises(Refusal, match="no like one was found on one side"):
        find(speck)


def test_names_of_sides_do_not_count_where_sides_do_not() -> None:
    named: list[tuple[tuple[int, ...], Side | None]] = [((1,), "left"), ((2,), "right")]
    found = find_parts(volume((10, 20, 10, 6, 1), (40, 20, 10, 8, 2)), GRID, named, RULE, sides=False)
    assert [part.side for part in found.parts] == [None, None]
