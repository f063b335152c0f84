"""Adversarial losses against values worked out by hand."""

import math

import pytest
import torch

from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import AdversarialLoss, AdversarialSchedule, Adversary, feature_matching, gradient_penalty

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


def test_references_are_drawn_towards_the_uniform_distribution() -> None:
    discriminator = ConditionalPatchDiscriminator(label_channels=3)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    adversary = Adversary(discriminator, optimizer, AdversarialSchedule(), smoothing=0.3)
    label = torch.tensor([1, 1, 0]).reshape(1, 1, 3, 1, 1)
    real = adversary.reference(label, torch.full((1, 3, 3, 1, 1), 1 / 3))
    assert real[0, :, 0, 0, 0].tolist() == pytest.approx([0.1, 0.8, 0.1])
