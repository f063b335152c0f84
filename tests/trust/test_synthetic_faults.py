from __future__ import annotations

import numpy as np
import pytest

from medseg.trust.synthetic_faults import IMAGE_FAULTS, MASK_FAULTS, displaced
from tests.trust.conftest import ball, result


@pytest.mark.parametrize("kind", IMAGE_FAULTS)
def test_image_faults_change_the_image_and_keep_it_normalised(kind: str) -> None:
    image, _ = ball(0)
    worse = IMAGE_FAULTS[kind](image, np.random.default_rng(1))
    again = IMAGE_FAULTS[kind](image, np.random.default_rng(1))
    assert worse.shape == image.shape
    assert worse.dtype == np.float32
    assert np.abs(worse - image).mean() > 0.02
    assert worse.mean() == pytest.approx(0, abs=1e-4)
    assert worse.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(worse, again)


@pytest.mark.parametrize("kind", MASK_FAULTS)
def test_mask_faults_lower_dice_and_stay_probabilities(kind: str) -> None:
    dice = []
    for seed in range(12):
        case = result(seed, kind)
        found = case.crop.probabilities.numpy()
        assert found.dtype == np.float32
        assert found.min() >= 0
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        mask, truth = found.argmax(0) == 1, case.reference == 1
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert min(dice) < 0.9
    assert np.ptp(dice) > 0.03


def test_a_wrong_crop_moves_image_and_reference_alike() -> None:
    image, mask = ball(3)
    moved, reference = displaced(image, mask, np.random.default_rng(0))
    assert 0 < reference.sum() <= mask.sum()
    assert (reference != mask).any()
    bright = moved > np.quantile(moved, 1 - reference.mean())
    assert (bright & (reference == 1)).sum() > 0.8 * reference.sum()


def test_what_moved_is_seen_where_the_reference_has_it() -> None:
    image, mask = ball(2)
    rng = np.random.default_rng(5)
    kept = []
    for _ in range(30):
        moved = IMAGE_FAULTS["motion"](image, rng)
        shares = [np.argwhere(one > np.quantile(one, 1 - mask.mean())).mean(axis=0) for one in (moved, image)]
        kept.append(np.linalg.norm(shares[0] - shares[1]))
    assert np.mean(kept) < 0.7  # voxels between the centres of what is bright, where steps are up to ten
