from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric
from numpy.typing import NDArray
from scipy import ndimage

from medseg.evaluation import Definitions, evaluate_case
from medseg.evaluation.surfaces import (
    SurfaceDistances,
    distances_mm,
    element_areas_mm2,
    measure_surface_elements,
    measure_voxel_surfaces,
    surface_of,
)
from tests.evaluation import brute_force

SPACING_MM = (0.8, 1.1, 2.5)
AXES_MM = np.diag(SPACING_MM)


@settings(max_examples=30, deadline=None)
@given(mask=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=8)))
def test_the_surface_is_what_erosion_takes_away(mask: Any) -> None:
    surface = surface_of(mask)
    assert np.array_equal(surface, mask & ~ndimage.binary_erosion(mask))
    assert {tuple(p) for p in np.argwhere(surface)} == {tuple(p) for p in brute_force.surface_points(mask)}


def test_the_border_of_the_image_is_surface() -> None:
    full = np.ones((5, 5, 5), dtype=bool)
    assert surface_of(full).sum() == 5**3 - 3**3


@settings(max_examples=30, deadline=None)
@given(
    masks=hnp.arrays(np.bool_, st.tuples(st.just(2), *[st.integers(2, 9)] * 3)).filter(lambda m: bool(m[1].any())),
    spacing_mm=st.tuples(*[st.floats(0.1, 9.0)] * 3),
)
def test_distances_are_exact_and_in_order(masks: Any, spacing_mm: tuple[float, float, float]) -> None:
    points, target = masks
    found = distances_mm(points, target, np.diag(spacing_mm))
    if points.any():
        expected = brute_force.directed_distances(np.argwhere(points), np.argwhere(target), np.diag(spacing_mm))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert len(found) == points.sum()


@pytest.mark.parametrize("sheared", [False, True])
def test_far_points_are_exact_too(sheared: bool) -> None:
    generator = np.random.default_rng(1)
    points = generator.random((30, 28, 26)) < 0.1
    target = np.zeros_like(points)
    target[:2, :2, :2] = True
    axes = AXES_MM + np.array([[0, 0.3, 0], [0, 0, 0.4], [0, 0, 0]]) * sheared
    expected = brute_force.directed_distances(np.argwhere(points), np.argwhere(target), axes)
    np.testing.assert_allclose(distances_mm(points, target, axes), expected, rtol=1e-6)


def blobs(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two smooth structures that overlap, well inside the image."""
    generator = np.random.default_rng(seed)
    grid = np.ogrid[:40, :36, :24]
    made = []
    for _ in range(2):
        centre = np.array([20, 18, 12]) + generator.uniform(-2, 2, 3)
        radii = generator.uniform(5, 8, 3)
        made.append(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1)
    return made[0], made[1]


def one_hot(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_monai(seed: int) -> None:
    prediction, reference = blobs(seed)
    found = measure_voxel_surfaces(prediction, reference, AXES_MM)
    p, r = one_hot(prediction), one_hot(reference)
    for percentile in (100.0, 95.0):
        metric = HausdorffDistanceMetric(percentile=percentile)
        assert found.percentile_mm(percentile) == pytest.approx(metric(p, r, spacing=SPACING_MM).item(), rel=1e-5)
    assd = SurfaceDistanceMetric(symmetric=True)(p, r, spacing=SPACING_MM).item()
    assert found.average_mm() == pytest.approx(assd, rel=1e-5)
    nsd = SurfaceDiceMetric(class_thresholds=[1.3])(p, r, spacing=SPACING_MM).item()
    assert found.share_within(1.3) == pytest.approx(nsd, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scipy(seed: int) -> None:
    prediction, reference = blobs(seed)
    found = measure_voxel_surfaces(prediction, reference, AXES_MM)
    surface_p, surface_r = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference))
    forward = ndimage.distance_transform_edt(~surface_r, sampling=SPACING_MM)[surface_p]
    backward = ndimage.distance_transform_edt(~surface_p, sampling=SPACING_MM)[surface_r]
    np.testing.assert_allclose(found.to_reference_mm, forward, rtol=1e-6)
    np.testing.assert_allclose(found.to_prediction_mm, backward, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_hausdorff_distance_agrees_with_simpleitk_for_nested_structures(seed: int) -> None:
    # SimpleITK measures between whole masks, and so finds less where one mask does not reach into the other.
    prediction, _ = blobs(seed)
    reference = ndimage.binary_dilation(prediction, iterations=2)
    images = []
    for mask in (prediction, reference):
        image = SimpleITK.GetImageFromArray(mask.T.astype(np.uint8))
        image.SetSpacing(SPACING_MM)
        images.append(image)
    peer = SimpleITK.HausdorffDistanceImageFilter()
    peer.Execute(*images)
    found = measure_voxel_surfaces(prediction, reference, AXES_MM)
    assert max(found.to_prediction_mm) == pytest.approx(peer.GetHausdorffDistance(), rel=1e-6)


def test_weights_count_as_repetition() -> None:
    distances, weights = np.array([0.0, 1.0, 4.0]), np.array([1.0, 2.0, 1.0])
    weighted = SurfaceDistances(distances, distances, weights, weights)
    repeated = SurfaceDistances(*[np.array([0.0, 1.0, 1.0, 4.0])] * 2)
    assert weighted.average_mm() == repeated.average_mm() == 1.5
    assert weighted.mean_of_directions_mm() == 1.5
    assert weighted.share_within(1.0) == repeated.share_within(1.0) == 0.75
    assert weighted.percentile_mm(100.0) == weighted.percentile_mm(100.0, "pooled") == 4.0
    assert weighted.percentile_mm(75.0) == 1.0
    assert weighted.hausdorff_mm() == 4.0


def test_averages_differ_where_the_surfaces_differ_in_size() -> None:
    lopsided = SurfaceDistances(np.array([1.0, 1.0, 1.0]), np.array([5.0]))
    assert lopsided.average_mm() == 2.0
    assert lopsided.mean_of_directions_mm() == 3.0
    assert lopsided.percentile_mm(50.0) == 5.0
    assert lopsided.percentile_mm(50.0, "pooled") == 1.0


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # medpy imports scipy's old names
@pytest.mark.parametrize("seed", range(3))
def test_the_pooled_percentile_and_the_average_agree_with_medpy(seed: int) -> None:
    peer = pytest.importorskip("medpy.metric.binary", reason="medpy is not installed")
    prediction, reference = blobs(seed)
    found = measure_voxel_surfaces(prediction, reference, AXES_MM)
    assert found.percentile_mm(95.0, "pooled") == pytest.approx(peer.hd95(prediction, reference, SPACING_MM))
    assert found.average_mm() == pytest.approx(peer.assd(prediction, reference, SPACING_MM))
    assert found.hausdorff_mm() == pytest.approx(peer.hd(prediction, reference, SPACING_MM))


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
