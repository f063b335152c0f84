from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation import Definitions, evaluate_case
from medseg.evaluation.surfaces import element_areas_mm2, measure_surface_elements

_ALL_ON_ONE_SIDE = 0b00001111
"""The four corners with the first index 0."""


def test_the_area_of_simple_cubes_is_what_a_hand_finds() -> None:
    areas = element_areas_mm2(np.eye(3))
    assert areas[0] == areas[255] == 0.0
    assert areas[1] == pytest.approx(np.sqrt(3) / 8)  # one corner: a triangle of side 1/√2
    assert areas[_ALL_ON_ONE_SIDE] == pytest.approx(1.0)  # a flat face
    assert areas[0b00000011] == pytest.approx(np.sqrt(2) / 2)  # one edge: a strip cut at 45°
    assert areas[0b10000001] == pytest.approx(2 * np.sqrt(3) / 8)  # opposite corners: two triangles


@pytest.mark.parametrize("flip", range(3))
def test_areas_have_the_symmetry_of_the_cube(flip: int) -> None:
    corners = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    areas = element_areas_mm2(np.diag([0.7, 1.3, 2.9]))
    for code in range(256):
        inside = {corner for bit, corner in enumerate(corners) if code >> bit & 1}
        mirrored = {tuple(1 - c if axis == flip else c for axis, c in enumerate(corner)) for corner in inside}
        other = sum(1 << bit for bit, corner in enumerate(corners) if corner in mirrored)
        assert areas[code] == pytest.approx(areas[other])


def test_the_area_of_a_ball_is_that_of_a_sphere() -> None:
    spacing_mm = np.array([0.5, 0.8, 1.0])
    centre = np.array([30, 20, 16])
    grid = np.indices((61, 41, 33)).transpose(1, 2, 3, 0)
    ball = np.linalg.norm((grid - centre) * spacing_mm, axis=-1) <= 12.0
    found = measure_surface_elements(ball, ball, np.diag(spacing_mm))
    assert found.reference_weights is not None
    # Binary marching cubes overestimates a curved surface by its terraces, by a known tenth.
    assert found.reference_weights.sum() == pytest.approx(4 * np.pi * 12.0**2, rel=0.11)
    assert found.hausdorff_mm() == 0.0


def test_two_flat_surfaces_lie_their_gap_apart() -> None:
    thick, thin = np.zeros((12, 10, 10), np.uint8), np.zeros((12, 10, 10), np.uint8)
    thick[:8], thin[:5] = 1, 1
    elements = Definitions(surface="elements")
    [result] = evaluate_case(thin, thick, (2.0, 1.0, 1.0), [1], tolerance_mm=6.0, definitions=elements)
    assert result.hd_mm == pytest.approx(6.0)
    assert result.nsd == pytest.approx(1.0)
    [strict] = evaluate_case(thin, thick, (2.0, 1.0, 1.0), [1], tolerance_mm=1.0, definitions=elements)
    # The shared sides count, the far ends do not.
    assert strict.nsd == pytest.approx(0.55, abs=0.25)


def test_elements_weigh_surfaces_where_voxels_count_them() -> None:
    """On an anisotropic grid most surface voxels lie on the side walls; their share of the area is another one."""
    slab, shifted = np.zeros((24, 24, 12), np.uint8), np.zeros((24, 24, 12), np.uint8)
    slab[4:20, 4:20, 3:9], shifted[4:20, 4:20, 4:10] = 1, 1
    spacing_mm = (0.5, 0.5, 5.0)
    [voxels] = evaluate_case(shifted, slab, spacing_mm, [1])
    [elements] = evaluate_case(shifted, slab, spacing_mm, [1], definitions=Definitions(surface="elements"))
    assert voxels.dice == elements.dice
    assert abs(voxels.nsd - elements.nsd) > 0.02  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # surface-distance 0.1 is from 2018
def test_agrees_with_the_surface_distance_package() -> None:
    peer = pytest.importorskip("surface_distance", reason="google's surface-distance is not installed")
    spacing_mm = (0.8, 1.1, 2.0)
    grid = np.ogrid[:40, :40, :30]
    one = (grid[0] - 18) ** 2 + (grid[1] - 20) ** 2 + (grid[2] - 14) ** 2 <= 120
    two = (grid[0] - 20) ** 2 + (grid[1] - 19) ** 2 + (grid[2] - 15) ** 2 <= 140
    distances = peer.compute_surface_distances(one, two, spacing_mm)
    found = measure_surface_elements(two, one, np.diag(spacing_mm))
    assert found.hausdorff_mm() == pytest.approx(peer.compute_robust_hausdorff(distances, 100))
    assert found.percentile_mm(95.0) == pytest.approx(peer.compute_robust_hausdorff(distances, 95))
    assert found.share_within(1.0) == pytest.approx(peer.compute_surface_dice_at_tolerance(distances, 1.0), abs=0.01)
