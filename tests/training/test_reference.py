"""What the discriminator is shown as real: one-hot, smoothed, or as soft as the prediction beside it."""

import pytest
import torch
from torch.optim import SGD

from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import AdversarialSchedule, Adversary

LABEL = torch.tensor([1, 1, 0]).reshape(1, 1, 3, 1, 1)
FAKE = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]).T.reshape(1, 3, 3, 1, 1)


def _adversary(smoothing: float = 0.0, scaled: float | None = None) -> Adversary:
    discriminator = ConditionalPatchDiscriminator(label_channels=3)
    optimizer = SGD(discriminator.parameters(), lr=0.1)
    return Adversary(discriminator, optimizer, AdversarialSchedule(), smoothing=smoothing, scaled=scaled)


def test_smoothing_draws_towards_the_uniform_distribution() -> None:
    real = _adversary(smoothing=0.3).reference(LABEL, FAKE)
    assert real[0, :, 0, 0, 0].tolist() == pytest.approx([0.1, 0.8, 0.1])


def test_a_scaled_reference_is_as_soft_as_the_prediction_where_that_is_right_and_right_elsewhere() -> None:
    real = _adversary(scaled=0.6).reference(LABEL, FAKE)[0, :, :, 0, 0].T
    assert real[0].tolist() == pytest.approx([0.1, 0.9, 0.0])  # right and sure enough: as it is
    assert real[1].tolist() == pytest.approx([0.4 * 5 / 7, 0.6, 0.4 * 2 / 7])  # wrong: the right class is lifted
    assert real[2].tolist() == pytest.approx([0.6, 0.4 * 5 / 8, 0.4 * 3 / 8])
    assert real.argmax(1).tolist() == LABEL.flatten().tolist()


def test_scaled_references_are_probabilities_even_where_the_prediction_is_certain() -> None:
    certain = torch.eye(3)[[2, 1, 0]].T.reshape(1, 3, 3, 1, 1)
    real = _adversary(scaled=0.6).reference(LABEL, certain)
    assert torch.isfinite(real).all()
    assert real.sum(1).flatten().tolist() == pytest.approx([1.0] * 3)
