from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.trust.crop import Crop
from medseg.trust.features import border_features, case_features, confidence_features, shape_features


def test_soft_dice_by_hand() -> None:
    # two voxels labelled with 0.9 and 0.6, one more with a chance of 0.3: 2·1.5 / (1.8 + 2)
    foreground = torch.tensor([0.9, 0.6, 0.3, 0.0]).reshape(1, 4, 1, 1)
    probabilities = torch.cat([1 - foreground, foreground])
    values = confidence_features(probabilities, probabilities.argmax(0))
    assert values["soft-dice[1]"] == pytest.approx(3.0 / 3.8)
    assert values["mean-margin[1]"] == pytest.approx((0.8 + 0.2) / 2)
    assert values["unsure[1]"] == 0.5
    entropies = [-p * np.log2(p) - (1 - p) * np.log2(1 - p) for p in (0.9, 0.6, 0.3)]
    assert values["mean-entropy[1]"] == pytest.approx(np.mean(entropies), abs=1e-5)


def test_soft_dice_is_the_dice_to_expect() -> None:
    rng = np.random.default_rng(0)
    foreground = torch.from_numpy(rng.beta(0.3, 0.5, (1, 20, 20, 20)).astype(np.float32))
    probabilities = torch.cat([1 - foreground, foreground])
    labels = probabilities.argmax(0)
    truth = rng.random((20, 20, 20)) < foreground[0].numpy()
    mask = labels.numpy() == 1
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert confidence_features(probabilities, labels)["soft-dice[1]"] == pytest.approx(dice, abs=0.02)


def test_shape_by_hand() -> None:
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    labels[1:3, 1:4, 1:5] = 1
    labels[8, 8, 8] = 1
    labels[5:7, 5:7, 5:7] = 2
    values = shape_features(labels, (1.0, 2.0, 0.5), 3)
    assert values["log-volume[2]"] == pytest.approx(np.log(8 / 1000))
    assert values["other[2]"] == pytest.approx(np.log(9 / 26))
    assert values["largest[1]"] == pytest.approx(24 / 25)
    assert values["pieces[1]"] == pytest.approx(np.log(2))
    assert (values["extent-0[2]"], values["extent-1[2]"], values["extent-2[2]"]) == (4.0, 2.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 4), st.floats(0, 1))
def test_values_are_finite_for_any_probabilities(seed: int, classes: int, sharp: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(9, 14, 3))
    logits = torch.from_numpy(rng.standard_normal((classes, *shape)).astype(np.float32)) * (50 * sharp)
    case = case_features(Crop(torch.zeros(1, *shape), logits.softmax(0)), None)
    assert np.isfinite(list(case.values.values())).all()
    assert np.isfinite(list(case.shape.values())).all()
    assert case.error_map.shape == shape


def test_what_touches_the_border_by_hand() -> None:
    labels = torch.zeros(10, 10, 10, dtype=torch.long)
    labels[0:4, 3:5, 3:5] = 1  # 16 voxels, four of them in the first layer
    labels[6:10, 6:10, 6:8] = 2  # 32 voxels, inside of two faces 3·3·2
    values = border_features(labels, 4)
    assert values["at-border[1]"] == 4 / 16
    assert values["faces[1]"] == 1 / 6
    assert values["at-border[2]"] == (32 - 18) / 32
    assert values["faces[2]"] == 2 / 6
    assert (values["at-border[3]"], values["faces[3]"]) == (0.0, 0.0)


def test_the_end_of_the_surroundings_is_no_border() -> None:
    foreground = torch.zeros(1, 60, 60, 60)
    foreground[0, 28:32, 28:32, 28:32] = 0.9
    probabilities = torch.cat([1 - foreground, foreground])
    whole = case_features(Crop(torch.zeros(1, 60, 60, 60), probabilities), None).values
    assert (whole["at-border[1]"], whole["faces[1]"]) == (0.0, 0.0)
    cut = case_features(Crop(torch.zeros(1, 30, 60, 60), probabilities[:, :30]), None).values  # the view ends in it
    assert (cut["at-border[1]"], cut["faces[1]"]) == (0.5, 1 / 6)
