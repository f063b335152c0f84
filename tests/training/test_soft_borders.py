"""The loss with soft borders: by hand where two structures touch, MONAI's where none do, and refusals."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from scipy.stats import norm
from torch import Tensor

from medseg.training import SoftBorderLoss


def _rod(border: int = 8, length: int = 16) -> Tensor:
    """A rod along the second axis, structure 2 before ``border`` and 1 from there on, in background ``(1, 1, …)``."""
    label = torch.zeros(1, 1, 7, length, 7)
    label[..., 2:5, :border, 2:5], label[..., 2:5, border:, 2:5] = 2, 1
    return label


def test_shares_follow_the_gaussian_across_a_flat_border_and_the_outline_stays() -> None:
    label = _rod()
    target = SoftBorderLoss(1.0).target(label, 3)
    assert torch.equal(target[:, :1], (label == 0).float())
    assert torch.allclose(target.sum(1), torch.ones(1, 7, 16, 7))
    # the Gaussian of a voxel 0.5 and 1.5 beyond the border, over voxels of finite width
    for along, distance in ((8, 0.0), (9, 1.0), (7, -1.0)):
        weights = [norm.cdf(k + 0.5) - norm.cdf(k - 0.5) for k in range(-4, 5)]
        expected = sum(w for k, w in zip(range(-4, 5), weights, strict=True) if k + distance >= 0) / sum(weights)
        assert target[0, 1, 3, along, 3].item() == pytest.approx(expected, abs=1e-4)
        assert torch.allclose(target[0, 1, 2:5, along, 2:5], target[0, 1, 3, along, 3].expand(3, 3), atol=1e-5)


def test_where_no_structures_touch_it_is_monais() -> None:
    label = _rod()
    label[..., 4:12, :] = 0  # further apart than the Gaussian reaches
    logits = torch.randn(1, 3, 7, 16, 7, generator=torch.Generator().manual_seed(0))
    plain = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert torch.isclose(SoftBorderLoss(0.5)(logits, label), plain(logits, label))
    assert not torch.isclose(SoftBorderLoss(0.5)(logits, _rod()), plain(logits, _rod()))


def test_a_border_one_slice_aside_costs_less_than_with_hard_labels_against_one_two_aside() -> None:
    def cost(loss: torch.nn.Module, border: int) -> float:
        sure = torch.nn.functional.one_hot(_rod(border)[:, 0].long(), 3).permute(0, 4, 1, 2, 3)
        return float(loss(sure * 4.0, _rod()))

    hard = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    soft = SoftBorderLoss(1.0)
    # per slice of error the same with hard labels; with soft ones the first slice is the cheap one
    steps = [[cost(loss, 8 + k + 1) - cost(loss, 8 + k) for k in range(2)] for loss in (hard, soft)]
    assert steps[0][0] == pytest.approx(steps[0][1], rel=0.05)
    assert 0.0 < steps[1][0] < 0.7 * steps[1][1]


def test_only_borders_within_a_group_are_soft() -> None:
    label = _rod()
    label[..., :4, :] = label[..., :4, :] * 1.5  # a third structure beside the second
    target = SoftBorderLoss(0.5, groups=[[1, 2]]).target(label, 4)
    assert torch.equal(target[:, 3:], (label == 3).float())
    assert 0.0 < target[0, 1, 3, 7, 3] < target[0, 2, 3, 7, 3] < 1.0
    assert target[0, 2, 3, 4, 3] == 1.0
    assert torch.allclose(target.sum(1), torch.ones(1, 7, 16, 7))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_width_that_is_none_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="expected a distance above 0"):
        SoftBorderLoss(sigma)


@pytest.mark.parametrize("groups", [[[1, 2], [2, 3]], [[0, 1]]])
def test_groups_that_overlap_or_hold_the_background_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="expected every structure in one of them"):
        SoftBorderLoss(1.0, groups)
