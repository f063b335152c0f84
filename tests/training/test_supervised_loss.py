"""The losses: MONAI's where all is known and no border soft, no gradient from what nobody judged, borders by hand."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from medseg.labels import LabelScheme
from medseg.training import AdversarialSchedule, Adversary, DeepSupervision, KnownDiceCELoss, SoftBorderLoss
from medseg.transforms.known_labels import IGNORED, known_classes, possible_classes

_SCHEME = LabelScheme.of({"labels": {"anterior": 1, "posterior": 2, "ignore": 9}})
_PARTLY = -(1 + (1 << 2))  # background, or the posterior part


def _drawn(classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 6, 5, 4, generator=generator)
    label = torch.randint(0, classes, (2, 1, 6, 5, 4), generator=generator).float()
    return logits.requires_grad_(), label


def test_with_everything_known_it_is_monais() -> None:
    logits, label = _drawn()
    plain = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert torch.isclose(KnownDiceCELoss()(logits, label), plain(logits, label))
    regions = (torch.rand(2, 3, 6, 5, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    dice = DiceLoss(sigmoid=True, batch=True)(logits, regions)
    both = dice + binary_cross_entropy_with_logits(logits, regions)
    assert torch.isclose(KnownDiceCELoss(sigmoid=True)(logits, regions), both)


def test_ignored_voxels_give_no_gradient_and_count_for_nothing() -> None:
    logits, label = _drawn()
    label[:, :, :3] = IGNORED
    loss = KnownDiceCELoss()(logits, label)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, :, :3].abs().max() == 0
    assert gradient[:, :, 3:].abs().min() > 0
    plain = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert torch.isclose(loss, plain(logits[:, :, 3:], label[:, :, 3:]))  # as if they were not there
    label[:] = IGNORED
    (gradient,) = torch.autograd.grad(KnownDiceCELoss()(logits, label), logits)
    assert gradient.abs().max() == 0


def test_a_structure_nobody_looked_for_is_not_pushed_away() -> None:
    """Between background and it nothing is learnt; against what was looked for, both stand together."""
    logits, label = _drawn()
    label[label == 2] = 0
    label[label == 0] = _PARTLY
    (gradient,) = torch.autograd.grad(KnownDiceCELoss()(logits, label), logits)
    where = (label == _PARTLY).expand_as(logits)
    ratio = (gradient[:, 0] * logits.softmax(1)[:, 2] - gradient[:, 2] * logits.softmax(1)[:, 0])[where[:, 0]]
    assert ratio.abs().max() < 1e-7  # their odds stay what they are
    assert (gradient[:, 0][where[:, 0]] < 0).all()  # and both gain on the anterior part
    (naive,) = torch.autograd.grad(KnownDiceCELoss()(logits, label.clamp_min(0)), logits)
    assert (naive[:, 2][where[:, 0]] > 0).all()  # as background, the structure would be unlearnt


def test_codes_say_what_is_possible() -> None:
    label = torch.tensor([0.0, 1.0, 0.0, 9.0]).view(1, 1, 1, 4)
    codes = known_classes(label, _SCHEME, unknown=[2])
    assert codes.flatten().tolist() == [_PARTLY, 1, _PARTLY, IGNORED]
    possible = possible_classes(codes[None], 3)[0, :, 0, 0]
    assert possible.int().tolist() == [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1]]


def test_heads_of_deep_supervision_see_the_same_codes() -> None:
    logits, label = _drawn()
    label[:] = IGNORED
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.MaxPool3d(2))
    deep = DeepSupervision(["1"], [2], 3)
    with deep.reading(network):
        network(torch.zeros(2, 1, 6, 5, 4))
    assert float(deep.loss(KnownDiceCELoss(), logits, label).detach()) == 0


def _adversary(activation: str, channels: int) -> Adversary:
    from medseg.networks import ConditionalPatchDiscriminator

    judge = ConditionalPatchDiscriminator(label_channels=channels, image_channels=1, channels=4, layers=1)
    optimizer = torch.optim.SGD(judge.parameters(), 0.1)
    return Adversary(judge, optimizer, AdversarialSchedule(share=0.1), activation=activation, noise=0.0)  # type: ignore[arg-type]


def test_the_discriminator_sees_both_sides_alike_where_nothing_is_known() -> None:
    logits, label = _drawn()
    label[:, :, :3] = IGNORED
    adversary = _adversary("softmax", 3)
    fake = adversary.judged(logits.detach())
    known = adversary.known(label, fake)
    assert isinstance(known, Tensor)
    for side in (fake * known, adversary.reference(label, fake) * known):
        assert side[:, :, :3].abs().max() == 0
        assert (side[:, :, 3:].sum(1) == 1).all()
    label[:, :, 3:][label[:, :, 3:] != 1] = _PARTLY
    known = adversary.known(label, fake)
    assert isinstance(known, Tensor)
    # the channels of what was not looked for are empty in the whole patch: their edge would draw the reference
    assert known[:, :, 3:].flatten(2).amin(2).tolist() == [[0, 1, 0]] * 2
    assert known[:, :, 3:].flatten(2).amax(2).tolist() == [[0, 1, 0]] * 2
    adversary.learn(torch.zeros(2, 1, 6, 5, 4), label, logits.detach(), 1.0, update=True)
    adversary.teach(torch.zeros(2, 1, 6, 5, 4), label, logits, None).backward()
    assert logits.grad is not None
    assert logits.grad[:, :, :3].abs().max() == 0


def test_the_discriminator_sees_regions_where_they_are_known() -> None:
    logits, _ = _drawn()
    label = (logits.detach() > 0).float()
    label[:, 1] = IGNORED
    adversary = _adversary("sigmoid", 3)
    fake = adversary.judged(logits.detach())
    known = adversary.known(label, fake)
    assert isinstance(known, Tensor)
    assert torch.equal(fake * known, adversary.reference(label, fake) * known)
    wrong = adversary.fakes(adversary.reference(label, fake) * known, fake * known, known)
    assert wrong[:, 1].abs().max() == 0
    assert adversary.known(label.clamp_min(0), fake) == 1.0


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


def test_a_group_of_a_class_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="the classes 0 to 2 alone"):
        SoftBorderLoss(1.0, [[1, 3]])(torch.zeros(1, 3, 7, 16, 7), _rod())
