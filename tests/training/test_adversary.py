"""Adversarial losses against values worked out by hand; what the discriminator sees, and how much it counts."""

import copy
import math
from typing import Any

import pytest
import torch
from monai.networks import one_hot
from torch import Tensor

from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import (
    AdversarialLoss,
    AdversarialSchedule,
    Adversary,
    GradientShare,
    feature_matching,
    gradient_penalty,
)

REAL, FAKE = [torch.tensor([2.0])], [torch.tensor([-1.0])]


def test_classical_pair() -> None:
    loss = AdversarialLoss("classical")
    sigmoid = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0)]
    expected = -(math.log(sigmoid[0]) + math.log(1 - sigmoid[1]))
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(expected)
    assert loss.generator(FAKE).item() == pytest.approx(-math.log(sigmoid[1]))
    assert loss.generator([torch.tensor([-200.0])]).item() == pytest.approx(200.0)  # logits: no saturation, no inf


def test_least_squares_and_hinge() -> None:
    squares, hinge = AdversarialLoss("least-squares"), AdversarialLoss("hinge")
    assert squares.discriminator(REAL, FAKE).item() == pytest.approx((2 - 1) ** 2 + (-1) ** 2)
    assert squares.generator(FAKE).item() == pytest.approx(4.0)
    assert hinge.discriminator(REAL, FAKE).item() == pytest.approx(0.0)
    assert hinge.discriminator(FAKE, REAL).item() == pytest.approx(2.0 + 3.0)
    assert hinge.generator(FAKE).item() == pytest.approx(1.0)


def test_scales_are_averaged() -> None:
    loss = AdversarialLoss("least-squares")
    assert loss.generator([torch.tensor([1.0]), torch.tensor([3.0])]).item() == pytest.approx(2.0)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="hinge"):
        AdversarialLoss("wasserstein")  # type: ignore[arg-type]


def test_feature_matching_pulls_the_fake_only() -> None:
    real, fake = torch.tensor([1.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)
    distance = feature_matching([[real]], [[fake]])
    distance.backward()
    assert distance.item() == 3.0
    assert real.grad is None
    assert fake.grad is not None


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    inputs = torch.zeros(2, 3, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 2.0])
    assert gradient_penalty([inputs @ weight], inputs).item() == pytest.approx(9.0)


def _adversary(**options: Any) -> Adversary:
    discriminator = ConditionalPatchDiscriminator(label_channels=3, channels=4, layers=1)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    return Adversary(discriminator, optimizer, AdversarialSchedule(), **options)


def _case(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Images ``(B, 1, 16, 16, 16)`` that are their labels: two halves of a block."""
    label = torch.zeros(batch, 1, 16, 16, 16)
    label[..., 4:8, 4:12, 4:12], label[..., 8:12, 4:12, 4:12] = 1, 2
    return label.clone(), label


def test_both_sides_are_hard_and_the_gradient_is_that_of_the_probabilities() -> None:
    adversary, (_, label) = _adversary(), _case()
    logits = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fake = adversary.judged(logits)
    assert set(fake.unique().tolist()) == {0.0, 1.0}, "not almost: a rest of the probabilities would tell a fake"
    assert torch.equal(fake.argmax(1), logits.argmax(1))
    perfect = adversary.judged(100.0 * one_hot(label.long(), 3))
    assert torch.equal(perfect, adversary.reference(label, perfect)), "a perfect prediction is a reference"
    weights = torch.randn(fake.shape, generator=torch.Generator().manual_seed(1))
    (through,) = torch.autograd.grad((weights * fake).sum(), logits)
    (soft,) = torch.autograd.grad((weights * logits.softmax(1)).sum(), logits)
    torch.testing.assert_close(through, soft)


def test_regions_of_a_sigmoid_may_overlap_on_both_sides() -> None:
    adversary, label = _adversary(activation="sigmoid", wrong_pairs=1.0), torch.zeros(1, 3, 8, 8, 8)
    label[:, 0, 1:7], label[:, 1, 2:5], label[:, 2, 3:4] = 1, 1, 1
    fake = adversary.judged(20.0 * label - 10.0)
    assert torch.equal(fake, adversary.reference(label, fake))
    wrong = adversary.fakes(label, fake)
    assert wrong.shape == label.shape
    assert not torch.equal(wrong, label)
    with pytest.raises(ValueError, match="softmax, sigmoid"):
        _adversary(activation="tanh")


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 200), (0.6, 120)])
def test_a_share_of_the_fakes_are_wrong_pairs(share: float, expected: int) -> None:
    adversary, (_, label) = _adversary(wrong_pairs=share), _case(batch=10)
    real = adversary.reference(label, torch.zeros(10, 3, 16, 16, 16))
    predicted = torch.zeros_like(real)
    predicted[:, 0] = 1.0
    shown = [adversary.fakes(real, predicted) for _ in range(20)]
    wrong = sum(
        int(not torch.equal(one, other)) for fakes in shown for one, other in zip(fakes, predicted, strict=True)
    )
    assert wrong == pytest.approx(expected, abs=25)
    assert all(torch.equal(fakes.sum(1), torch.ones(10, 16, 16, 16)) for fakes in shown), "one class a voxel"


def test_a_patch_without_a_structure_shows_its_prediction() -> None:
    adversary = _adversary(wrong_pairs=1.0)
    empty, predicted = torch.zeros(2, 3, 8, 8, 8), torch.rand(2, 3, 8, 8, 8)
    empty[:, 0] = 1.0
    assert torch.equal(adversary.fakes(empty, predicted), predicted)


def test_the_draws_go_on_from_a_saved_state() -> None:
    one, other = _adversary(), _adversary(seed=3)
    image, label = _case()
    logits = torch.randn(2, 3, 16, 16, 16)
    for _ in range(3):
        one.learn(image, label, logits, 1.0, update=True)
    state = copy.deepcopy(one.state_dict())
    expected = [one.learn(image, label, logits, 1.0, update=True)["discriminator_loss"] for _ in range(3)]
    other.load_state_dict(state)
    assert [other.learn(image, label, logits, 1.0, update=True)["discriminator_loss"] for _ in range(3)] == expected
    del state["draws"], state["balance"]  # an earlier version saved none
    other.load_state_dict(state)


def test_only_the_pair_that_fits_is_taken_for_real_when_it_has_learnt() -> None:
    """References and predictions that are equal: nothing but the wrong pairs can teach it."""
    torch.manual_seed(0)
    adversary = _adversary(noise=0.0, wrong_pairs=0.9)
    adversary.step.optimizer = torch.optim.Adam(adversary.discriminator.parameters(), lr=0.01)
    image, label = _case()
    for _ in range(60):
        adversary.learn(image, label, 100.0 * one_hot(label.long(), 3), 1.0, update=True)
    real = adversary.reference(label, torch.zeros(2, 3, 16, 16, 16))
    shifted = real.roll(3, 2)
    with torch.no_grad():
        fits, does_not = (adversary.discriminator(image, one).logits[0].mean() for one in (real, shifted))
    assert fits > does_not


def _losses(steep: float) -> tuple[Tensor, Tensor, Tensor]:
    output = torch.ones(1, 2, 3, 3, 3, requires_grad=True)
    return 2.0 * output.sum(), steep * output.sum(), output


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_adversarial_gradient_has_its_share_of_the_supervised_one(scale: float) -> None:
    balance = GradientShare(every=3, memory=0.5)
    weights = []
    for steep in (5.0, 5.0, 5.0, 10.0):  # measured in the first and in the fourth step
        supervised, adversarial, output = _losses(steep)
        weights.append(balance.weight(0.1, supervised, adversarial, [output], scale))
        sides = (
            torch.autograd.grad(supervised, output, retain_graph=True)[0],
            torch.autograd.grad(adversarial, output)[0],
        )
        if steep == 5.0:
            assert float(weights[-1] * sides[1].norm() / sides[0].norm()) == pytest.approx(0.1)
    assert weights == pytest.approx([0.04, 0.04, 0.04, 0.1 * 2.0 / 7.5])
    other = GradientShare(every=3, memory=0.5)
    other.load_state_dict(balance.state_dict())
    supervised, adversarial, output = _losses(20.0)
    assert other.weight(0.1, supervised, adversarial, [output]) == weights[-1], "not measured again before its time"


def test_without_labels_the_share_is_the_weight_and_a_loss_that_is_none_is_not_averaged() -> None:
    supervised, adversarial, output = _losses(1.0)
    assert GradientShare().weight(1.0, supervised * 0.0, adversarial, [output]) == 1.0
    balance = GradientShare(every=1)
    usual = balance.weight(0.1, supervised, adversarial, [output])
    assert balance.weight(0.1, supervised * math.nan, adversarial, [output]) == usual == pytest.approx(0.2)
    with pytest.raises(ValueError, match="every 0 steps"):
        GradientShare(every=0)
