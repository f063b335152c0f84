from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.phantom.anatomy import FIRST_STRUCTURE, STRUCTURES, Blob, Waves, draw_anatomy, rasterise, rotation

Floats = NDArray[np.float64]

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation(np.array([10.0, -20.0, 30.0])) @ np.diag([-3.0, -4.0, 5.0])
OBLIQUE[:3, 3] = (40.0, 60.0, -50.0)


def positions(affine: Floats, shape: tuple[int, int, int]) -> Floats:
    """Position of every voxel in mm; axes (i, j, k, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3], dtype=np.float64)


def test_a_blob_without_dents_is_the_sphere_of_its_radius() -> None:
    sphere = Blob(np.array([2.0, 3.0, 4.0]), np.eye(3) / 30.0, Waves(np.zeros((0, 3)), np.zeros(0), 0.0))
    shape = (30, 28, 26)
    level = sphere.level(OBLIQUE, tuple(slice(0, n) for n in shape)).T  # type: ignore[arg-type]
    distance_mm = np.linalg.norm(positions(OBLIQUE, shape) - (2.0, 3.0, 4.0), axis=-1)
    np.testing.assert_allclose(level, distance_mm / 30.0, atol=1e-5)


def test_waves_sampled_as_products_are_the_sum_of_cosines() -> None:
    random = np.random.default_rng(1)
    waves = Waves(random.normal(size=(3, 3)) * 0.05, random.uniform(0, 6, 3), 0.2)
    shape = (9, 8, 7)
    sampled = waves.sample(OBLIQUE[:3, :3], OBLIQUE[:3, 3], [np.arange(float(n)) for n in shape])
    expected = 0.2 * np.cos(positions(OBLIQUE, shape) @ waves.vectors.T + waves.phases).sum(axis=-1)
    np.testing.assert_allclose(sampled.T, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_box_of_a_blob_holds_all_of_it(seed: int) -> None:
    blob = draw_anatomy(np.random.default_rng(seed)).structures[0]
    assert blob is not None
    shape = (60, 50, 50)
    affine = OBLIQUE.copy()
    affine[:3, 3] = (20.0, 110.0, -120.0)
    inside = blob.level(affine, tuple(slice(0, n) for n in shape)).T < 1  # type: ignore[arg-type]
    box = blob.box(affine, shape)
    assert inside.any()
    assert box is not None
    inside[box] = False
    assert not inside.any()


def test_a_blob_outside_the_grid_has_no_box() -> None:
    far = Blob(np.array([1e4, 0.0, 0.0]), np.eye(3) / 10.0, Waves(np.zeros((0, 3)), np.zeros(0), 0.0))
    assert far.box(OBLIQUE, (10, 10, 10)) is None


@pytest.mark.parametrize("seed", range(6))
def test_every_patient_has_every_structure_and_a_lesion_only_inside_the_liver(seed: int) -> None:
    anatomy = draw_anatomy(np.random.default_rng(seed), lesion=True)
    affine = np.diag([-6.0, -6.0, 6.0, 1.0])
    affine[:3, 3] = (160.0, 160.0, -105.0)
    tissue = rasterise(anatomy, affine, (54, 54, 36), 0, 36)
    counts = np.bincount(tissue.ravel(), minlength=FIRST_STRUCTURE + len(STRUCTURES))
    assert (counts[FIRST_STRUCTURE:] > 15).all()
    lesion = tissue == FIRST_STRUCTURE + 4
    without = rasterise(draw_anatomy(np.random.default_rng(seed), lesion=False), affine, (54, 54, 36), 0, 36)
    assert (without[lesion] == FIRST_STRUCTURE).all()


def test_a_slab_is_the_same_as_that_part_of_the_whole() -> None:
    anatomy = draw_anatomy(np.random.default_rng(3))
    affine = np.diag([-6.0, -6.0, 6.0, 1.0])
    affine[:3, 3] = (160.0, 160.0, -105.0)
    whole = rasterise(anatomy, affine, (54, 54, 36), 0, 36)
    part = rasterise(anatomy, affine, (54, 54, 36), 10, 17)
    assert (whole[10:17] != part).mean() < 1e-4  # float32 rounding at a surface


def test_rotation_keeps_lengths_and_handedness() -> None:
    turn = rotation(np.array([10.0, 20.0, 30.0]))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation(np.array([0.0, 0.0, 90.0])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
