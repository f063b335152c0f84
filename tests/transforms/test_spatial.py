"""The fused spatial transform against geometry that can be checked by hand, and against MONAI's affine."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Affine

from medseg.transforms import RandSpatiald, SpatialDraw


def _ramp(*shape: int) -> torch.Tensor:
    """Volume whose value tells its own voxel index."""
    return torch.arange(float(np.prod(shape))).reshape(1, *shape)


def _plain(patch: tuple[int, int, int], **options: float) -> RandSpatiald:
    return RandSpatiald(["image"], patch, prob_affine=0.0, prob_elastic=0.0, **options)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.tuples(*[st.integers(3, 9)] * 3), st.tuples(*[st.integers(2, 9)] * 3))
def test_a_pure_crop_copies_voxels(seed: int, shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    transform = _plain(patch, margin=2)
    transform.set_random_state(seed=seed)
    image = _ramp(*shape) + 1.0
    found = transform({"image": image})["image"]
    assert found.shape == (1, *patch)
    drawn = transform.set_random_state(seed=seed).draw(shape)
    start = np.floor(drawn.centre - (np.asarray(patch) - 1) / 2).astype(int)
    for place in np.ndindex(*patch):
        source = start + place
        inside = bool((source >= 0).all() and (source < shape).all())
        expected = float(image[(0, *source)]) if inside else 0.0
        assert float(found[(0, *place)]) == expected


def test_identity_by_interpolation_equals_the_crop() -> None:
    transform = _plain((5, 6, 7))
    image = torch.rand(2, 5, 6, 7)
    still = SpatialDraw(np.array([2.0, 2.5, 3.0]), np.eye(3), torch.zeros(3, 2, 2, 2))
    assert torch.allclose(transform.sample(image, still), image, atol=1e-5)


def test_a_quarter_turn_is_exact() -> None:
    transform = _plain((5, 5, 3))
    image = _ramp(5, 5, 3)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = transform.sample(image, SpatialDraw(np.array([2.0, 2.0, 1.0]), turn, None))
    assert torch.allclose(found, torch.rot90(image, 1, (1, 2)), atol=1e-4) or torch.allclose(
        found, torch.rot90(image, -1, (1, 2)), atol=1e-4
    )


def test_a_shift_of_the_control_points_shifts_the_image() -> None:
    transform = _plain((6, 6, 6))
    image = _ramp(6, 6, 6)
    shift = torch.zeros(3, 2, 2, 2)
    shift[0] = 1.0
    found = transform.sample(image, SpatialDraw(np.full(3, 2.5), np.eye(3), shift))
    assert torch.allclose(found[:, :-1], image[:, 1:], atol=1e-3)


def test_affine_equals_monai() -> None:
    generator = np.random.default_rng(2)
    image = torch.from_numpy(generator.random((1, 12, 14, 10), dtype=np.float32))
    matrix = np.eye(4)
    matrix[:3, :3] += generator.uniform(-0.2, 0.2, (3, 3))
    ours = _plain((12, 14, 10)).sample(image, SpatialDraw(np.array([5.5, 6.5, 4.5]), matrix[:3, :3], None))
    theirs, _ = Affine(affine=matrix, padding_mode="zeros", image_only=False)(image)
    assert torch.allclose(ours, torch.as_tensor(theirs), atol=1e-4)


def test_image_and_label_move_together_and_labels_stay_labels() -> None:
    label = (torch.rand(1, 20, 20, 20) > 0.5).to(torch.uint8) * 3
    transform = RandSpatiald(["image", "label"], (12, 12, 12), mode=["bilinear", "nearest"], prob_elastic=1.0)
    transform.set_random_state(seed=4)
    for _ in range(5):
        found = transform({"image": label.float(), "label": label})
        assert found["label"].dtype == torch.uint8
        assert set(found["label"].unique().tolist()) <= {0, 3}
        nearest = (found["image"] > 1.5) == (found["label"] > 0)
        assert float(nearest.float().mean()) > 0.8


def test_ranges_are_kept_and_reached() -> None:
    transform = RandSpatiald(
        ["image"], (8, 8, 8), prob_affine=1.0, rotate_range=0.0, scale_range=0.25, prob_elastic=0.0
    )
    transform.set_random_state(seed=0)
    scales = np.array([np.diag(transform.draw((8, 8, 8)).matrix) for _ in range(500)])
    assert scales.min() >= 0.8 - 1e-9
    assert scales.max() <= 1.25 + 1e-9
    assert scales.max() > 1.2
    assert scales.min() < 0.83


def test_no_flip_unless_asked() -> None:
    still = RandSpatiald(["image"], (8, 8, 8)).set_random_state(seed=0)
    flipping = RandSpatiald(["image"], (8, 8, 8), flip_axes=(0,), prob_flip=0.5).set_random_state(seed=0)
    assert all(np.linalg.det(still.draw((8, 8, 8)).matrix) > 0 for _ in range(200))
    flipped = [np.linalg.det(flipping.draw((8, 8, 8)).matrix) < 0 for _ in range(400)]
    assert 0.4 < np.mean(flipped) < 0.6


def test_the_foreground_is_centred_on_request() -> None:
    label = torch.zeros(1, 30, 30, 30)
    label[0, 25, 3, 14] = 1.0
    transform = RandSpatiald(
        ["label"],
        (5, 5, 5),
        mode="nearest",
        prob_affine=0.0,
        prob_elastic=0.0,
        foreground_key="label",
        prob_foreground=1.0,
    )
    assert float(transform({"label": label})["label"][0, 2, 2, 2]) == 1.0
    empty = transform({"label": torch.zeros(1, 30, 30, 30)})["label"]
    assert empty.shape == (1, 5, 5, 5)


def test_the_source_is_not_changed_and_a_seed_repeats_the_result() -> None:
    image = torch.rand(1, 16, 16, 16)
    before = image.clone()
    transform = RandSpatiald(["image"], (8, 8, 8), prob_elastic=1.0)
    first = transform.set_random_state(seed=7)({"image": image})["image"]
    second = transform.set_random_state(seed=7)({"image": image})["image"]
    assert torch.equal(image, before)
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(4, 30, 8), (40, 5, 5)])
def test_volumes_smaller_than_the_patch_are_padded(shape: tuple[int, int, int]) -> None:
    transform = RandSpatiald(["image"], (16, 16, 16), prob_elastic=1.0)
    found = transform({"image": torch.ones(1, *shape)})["image"]
    assert found.shape == (1, 16, 16, 16)
    assert bool(torch.isfinite(found).all())
    assert float(found.min()) == 0.0


def test_an_unlabelled_case_is_deformed_like_a_labelled_one() -> None:
    image = torch.rand(1, 9, 9, 9)
    options: dict[str, object] = {"mode": ["bilinear", "nearest"], "prob_elastic": 0.0}
    strict, lenient = (
        RandSpatiald(["image", "label"], (6, 6, 6), allow_missing_keys=allowed, **options).set_random_state(seed=3)  # type: ignore[arg-type]
        for allowed in (False, True)
    )
    whole = strict({"image": image, "label": (image > 0.5).float()})
    alone = lenient({"image": image})
    assert set(alone) == {"image"}
    assert torch.equal(alone["image"], whole["image"])
    with pytest.raises(KeyError, match="label"):
        strict({"image": image})
