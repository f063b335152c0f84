"""Structures that a slice parts: found where readers did so, and kept parted by the turns that are planned."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.planning.partings import Parting, groups_of, partings_of, soft_loss, turns, usual_partings
from medseg.transforms import RandSpatiald


def _parted() -> NDArray[np.uint8]:
    """Structure 2 before the fifth slice along the second axis, 1 behind it."""
    label = np.zeros((10, 12, 8), np.uint8)
    label[2:8, 1:5, 2:6], label[3:7, 5:9, 2:5] = 2, 1
    return label


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_the_axis_is_the_patients(axes: tuple[int, int, int]) -> None:
    assert partings_of(_parted(), axes) == {Parting(axes.index(1), (1, 2))}
    assert partings_of(np.flip(_parted()), axes) == {Parting(axes.index(1), (1, 2))}


def test_a_voxel_on_the_other_side_is_no_slice() -> None:
    label = _parted()
    label[4, 4, 3] = 1
    assert partings_of(label, (0, 1, 2)) == set()


def test_structures_that_do_not_touch_are_not_parted() -> None:
    label = np.zeros((10, 12, 8), np.uint8)
    label[:4, :5], label[6:, 5:] = 1, 2
    assert partings_of(label, (0, 1, 2)) == set()


def test_half_of_the_cases_with_both_and_three_at_least_make_it_usual() -> None:
    one = Parting(1, (1, 2))
    assert usual_partings([({one}, (1, 2))] * 2) == ()
    assert usual_partings([({one}, (1, 2))] * 3 + [(set(), (2, 1))] * 3 + [(set(), (1, 3))] * 9) == (one,)
    assert usual_partings([({one}, (1, 2))] * 3 + [(set(), (1, 2))] * 4) == ()


def test_a_chain_is_one_group() -> None:
    pairs = [(1, 2), (4, 5), (2, 3), (3, 6)]
    assert groups_of(Parting(2, pair) for pair in pairs) == [[1, 2, 3, 6], [4, 5]]


@pytest.mark.parametrize("axis", range(3))
def test_slices_hardly_tilt_and_everything_else_turns_as_before(axis: int) -> None:
    rotation, shear = turns([Parting(axis, (1, 2))], (0.35, 0.35, 0.35))
    others = [number for number in range(3) if number != axis]
    draw = RandSpatiald("image", (8, 8, 8), prob_affine=1.0, rotate_range=rotation, shear_range=shear)
    draw.set_random_state(0)
    matrices = np.array([draw.draw((16, 16, 16)).matrix for _ in range(200)])
    # the normal of a slice across that axis, in the patch
    normals = matrices[:, axis] / np.linalg.norm(matrices[:, axis], axis=-1, keepdims=True)
    tilts = np.degrees(np.arccos(normals[:, axis]))
    assert 5 < tilts.max() < 15
    assert np.abs(matrices[:, others[0], others[1]]).max() > 0.3
    assert turns([], (0.35, 0.35, 0.09)) == ((0.35, 0.35, 0.09), (0.1,) * 6)


def test_readers_differ_by_slices_of_the_data() -> None:
    loss = soft_loss([Parting(2, (1, 2))], (1.0, 1.0, 3.0), (1.0, 1.0, 1.5))
    assert (loss["sigma_voxels"], loss["groups"]) == (2.2, [[1, 2]])
