"""The opponent of the generator: the discriminator with its optimiser, its losses and its schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks import one_hot
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from medseg.networks import Judgement
from medseg.training.buffers import Buffers
from medseg.training.losses import AdversarialLoss, feature_matching, gradient_penalty
from medseg.training.schedule import AdversarialSchedule
from medseg.training.steps import NetworkStep
from medseg.training.unlabelled import Views

__all__ = ["Adversary"]


class Adversary:
    """A discriminator that learns to tell references from predictions, and teaches the generator.

    Parameters
    ----------
    discriminator
        Called with (image, segmentation); returns a :class:`medseg.networks.Judgement`.
    optimizer, scheduler
        Those of the discriminator.
    schedule
        When it learns and how much it counts.
    loss
        The pair of adversarial losses; classical by default.
    max_norm
        Gradient clipping of the discriminator.
    feature_weight
        Weight of feature matching in the generator's loss, relative to the adversarial loss.
    penalty
        Weight of the R1 penalty on real pairs.
    smoothing
        Reference probabilities are drawn towards the uniform distribution by this fraction, so that hard
        one-hot values alone do not give a reference away.
    scaled
        If given, a reference is as soft as the prediction beside it instead: the right class gets what the prediction
        gives it, at least this value, and the others share the rest as in the prediction. Softness then tells
        nothing, and shape must (the "scaling" of Luc et al. 2016, arXiv 1611.08408).
    noise
        Standard deviation of the noise on both segmentations before they are judged (instance noise).
    too_good
        The discriminator skips its update while its accuracy over the last batches is above this value.
    seed
        Of the noise.
    """

    def __init__(  # noqa: PLR0913  knobs of one object, all with a default
        self,
        discriminator: nn.Module,
        optimizer: Optimizer,
        schedule: AdversarialSchedule,
        *,
        scheduler: LRScheduler | None = None,
        loss: AdversarialLoss | None = None,
        max_norm: float = math.inf,
        feature_weight: float = 0.0,
        penalty: float = 0.0,
        smoothing: float = 0.1,
        scaled: float | None = None,
        noise: float = 0.05,
        too_good: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.discriminator, self.schedule = discriminator, schedule
        self.loss = AdversarialLoss() if loss is None else loss
        self.step = NetworkStep("discriminator", discriminator, optimizer, scheduler=scheduler, max_norm=max_norm)
        self.feature_weight, self.penalty = feature_weight, penalty
        self.smoothing, self.scaled, self.noise, self.too_good = smoothing, scaled, noise, too_good
        self.accuracy = 0.5
        self.seed = seed
        self._generator: torch.Generator | None = None

    def judged(self, prediction: Tensor) -> Tensor:
        """What the discriminator sees of the generator's output: logits ``(B, classes, …)`` → probabilities."""
        return prediction.softmax(1)

    def reference(self, label: Tensor, fake: Tensor) -> Tensor:
        """Label map ``(B, 1, …)`` and probabilities of the fake pair ``(B, classes, …)`` → those of the real pair."""
        classes = fake.shape[1]
        hard = one_hot(label.long(), num_classes=classes, dtype=torch.float32)
        if self.scaled is None:
            return hard * (1.0 - self.smoothing) + self.smoothing / classes
        fake = fake.detach()
        found = (hard * fake).sum(1, keepdim=True)
        right = found.clamp_min(self.scaled)
        others = fake * (1.0 - right) / (1.0 - found).clamp_min(1e-6)
        return torch.where(hard > 0, right, others)

    def learn(self, image: Tensor | None, real: Tensor, fake: Tensor, share: float, update: bool) -> dict[str, float]:
        """One step of the discriminator on real and (detached) fake segmentations.

        Returns
        -------
        dict
            ``discriminator_loss``, the fractions of patches judged rightly, ``real_accuracy``, ``fake_accuracy``, their
            mean ``discriminator_accuracy``, and ``discriminator_rested``: 1 if it won too often to be updated.
        """
        self.discriminator.train().requires_grad_(True)
        before = Buffers(self.discriminator)
        real = self._disturb(real).requires_grad_(self.penalty > 0)
        judged_real: Judgement = self.discriminator(image, real)
        judged_fake: Judgement = self.discriminator(image, self._disturb(fake.detach()))
        loss = self.loss.discriminator(judged_real.logits, judged_fake.logits)
        if self.penalty:
            loss = loss + 0.5 * self.penalty * gradient_penalty(judged_real.logits, real)
        right = self._threshold()
        real_accuracy = _fraction([scale > right for scale in judged_real.logits])
        fake_accuracy = _fraction([scale < right for scale in judged_fake.logits])
        self.accuracy = 0.9 * self.accuracy + 0.05 * (real_accuracy + fake_accuracy)
        rests = self.accuracy > self.too_good
        if rests:
            self.step.clear()  # the generator cannot learn from an opponent that always wins
        elif not self.step.backward(loss, share) or (update and not self.step.update()):
            before.restore()  # what was skipped leaves no trace
        return {
            "discriminator_loss": loss.item(),
            "real_accuracy": real_accuracy,
            "fake_accuracy": fake_accuracy,
            "discriminator_accuracy": (real_accuracy + fake_accuracy) / 2.0,
            "discriminator_rested": float(rests),
        }

    def teach(self, image: Tensor | None, fake: Tensor, real: Tensor | None) -> Tensor:
        """Loss of the generator for ``fake``; gradient reaches the generator, not the discriminator's weights."""
        self.discriminator.train().requires_grad_(False)
        judged: Judgement = self.discriminator(image, self._disturb(fake))
        loss = self.loss.generator(judged.logits)
        if self.feature_weight and real is not None:
            with torch.no_grad():
                wanted: Judgement = self.discriminator(image, self._disturb(real))
            loss = loss + self.feature_weight * feature_matching(wanted.features, judged.features)
        return loss

    def teach_all(self, image: Tensor, label: Tensor, prediction: Tensor, views: Views | None) -> Tensor:
        """Mean loss of the generator over labelled and, if there are any, unlabelled images, from its logits."""
        fake = self.judged(prediction)
        loss = self.teach(image, fake, self.reference(label, fake) if self.feature_weight else None)
        if views is None or views.prediction is None:
            return loss
        other = self.teach(views.weak, self.judged(views.prediction), None)
        return (len(image) * loss + len(views.weak) * other) / (len(image) + len(views.weak))

    def state_dict(self) -> dict[str, Any]:
        """State of the discriminator, its optimiser and the noise."""
        noise = None if self._generator is None else self._generator.get_state()
        return {"step": self.step.state_dict(), "accuracy": self.accuracy, "noise": noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.step.load_state_dict(state["step"])
        self.accuracy = state["accuracy"]
        if state["noise"] is not None:
            self._noise_source(next(self.discriminator.parameters()).device).set_state(state["noise"].cpu())

    def _disturb(self, segmentation: Tensor) -> Tensor:
        if not self.noise:
            return segmentation
        source = self._noise_source(segmentation.device)
        return segmentation + self.noise * torch.randn(segmentation.shape, generator=source, device=segmentation.device)

    def _noise_source(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def _threshold(self) -> float:
        return 0.5 if self.loss.kind == "least-squares" else 0.0


def _fraction(flags: list[Tensor]) -> float:
    return float(torch.cat([flag.flatten() for flag in flags]).float().mean())
