"""The opponent of the generator: the discriminator with its optimiser and its schedule, and the losses between both.

All losses are on logits: no sigmoid is ever applied before them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from monai.networks import one_hot
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, relu
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from medseg.networks.discriminator import Judgement
from medseg.training.distributed import mean_over_processes
from medseg.training.gradient_share import GradientShare
from medseg.training.mean_teacher import UnlabelledBatch
from medseg.training.schedule import AdversarialSchedule
from medseg.training.step import Buffers, NetworkStep
from medseg.transforms.known_labels import IGNORED, possible_classes
from medseg.transforms.mismatched_pairs import MismatchedPairs

AdversarialKind = Literal["classical", "least-squares", "hinge"]
Activation = Literal["softmax", "sigmoid"]


class AdversarialLoss:
    """What discriminator and generator minimise, from logits with one tensor per scale; several scales are averaged.

    Parameters
    ----------
    kind
        ``"classical"``: the discriminator minimises −[log D(x) + log(1 − D(G))] and the generator −log D(G)
        (Goodfellow et al. 2014, the non-saturating pair); ``"least-squares"`` (Mao et al. 2017);
        ``"hinge"`` (Lim and Ye 2017). Any other is a ``ValueError``.
    """

    def __init__(self, kind: AdversarialKind = "classical") -> None:
        if kind not in (known := get_args(AdversarialKind)):
            raise ValueError(f"found the adversarial loss {kind!r}, expected one of {', '.join(known)}")
        self.kind = kind

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Loss of the discriminator from the logits of real and fake pairs."""
        pairs = zip(real, fake, strict=True)
        return torch.stack([self._judged(r, 1.0) + self._judged(f, 0.0) for r, f in pairs]).mean()

    def generator(self, fake: Sequence[Tensor]) -> Tensor:
        """Loss of the generator from the logits that its pairs received."""
        losses = [-logits.mean() if self.kind == "hinge" else self._judged(logits, 1.0) for logits in fake]
        return torch.stack(losses).mean()

    @property
    def threshold(self) -> float:
        """Logits above it mean "real": half-way between the targets of both."""
        return 0.5 if self.kind == "least-squares" else 0.0

    def _judged(self, logits: Tensor, target: float) -> Tensor:
        """Loss of logits that should say real (1) or fake (0)."""
        if self.kind == "classical":
            return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
        if self.kind == "hinge":
            return relu(1.0 - logits if target else 1.0 + logits).mean()
        return ((logits - target) ** 2).mean()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean L1 distance between the discriminator's feature maps of real and fake pairs (Wang et al. 2018).

    The real maps are a target: no gradient flows into them.
    """
    distances = [l1_loss(f, r.detach()) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return torch.stack(distances).mean()


def gradient_penalty(logits: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """R1 penalty: squared norm of the discriminator's gradient at real inputs (Mescheder et al. 2018).

    ``inputs`` must require gradients and the logits must depend on it.
    """
    total = torch.stack([scale.sum() for scale in logits]).sum()
    (gradient,) = torch.autograd.grad(total, inputs, create_graph=True)
    return gradient.pow(2).flatten(1).sum(1).mean()


class Adversary:
    """A discriminator that learns which segmentation belongs to an image, and teaches the generator.

    It sees references and predictions in the same form, as hard labels (one-hot), so that nothing but the labels tells
    them apart; the generator's gradient goes through its probabilities (straight-through, Bengio et al. 2013). Both are
    empty where the label does not know. Besides predictions, its fakes are references that do not belong to their image
    (:class:`MismatchedPairs`).

    Parameters
    ----------
    discriminator
        Called with (image, segmentation); returns a :class:`medseg.networks.Judgement`.
    optimizer, scheduler, max_norm
        Those of the discriminator; its gradients are clipped to the norm.
    schedule
        When it learns and how much it counts.
    loss
        The pair of adversarial losses; classical by default.
    feature_weight
        Weight of feature matching in the generator's loss, relative to the adversarial loss.
    penalty
        Weight of the R1 penalty on real pairs.
    wrong_pairs
        Share of the fakes that are wrong pairs instead of predictions, drawn for every item of a batch. An item of
        which there is no wrong pair, such as a patch without a structure, shows its prediction.
    mismatch
        How wrong pairs are made; None takes the usual way.
    balance
        How the share of the adversarial loss is held (:class:`GradientShare`).
    activation
        ``"softmax"``: the generator's channels are classes, and labels a map of them; ``"sigmoid"``: they are regions
        that may overlap, and labels have a channel for each.
    noise
        Standard deviation of the noise on both segmentations before they are judged (instance noise).
    too_good
        The discriminator skips its update while its accuracy over the last batches is above this value.
    seed
        Of the noise and the wrong pairs.
    """

    judges_labels = True
    """Whether it sees segmentations; otherwise images."""

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
        wrong_pairs: float = 0.6,
        mismatch: MismatchedPairs | None = None,
        balance: GradientShare | None = None,
        activation: Activation = "softmax",
        noise: float = 0.05,
        too_good: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0.0 <= wrong_pairs <= 1.0 or activation not in get_args(Activation):
            raise ValueError(
                f"found a share of wrong pairs of {wrong_pairs} and the activation {activation!r}; expected 0 to 1, "
                f"and one of {', '.join(get_args(Activation))}"
            )
        self.discriminator, self.schedule = discriminator, schedule
        self.loss = AdversarialLoss() if loss is None else loss
        self.step = NetworkStep("discriminator", discriminator, optimizer, scheduler=scheduler, max_norm=max_norm)
        self.feature_weight, self.penalty = feature_weight, penalty
        self.wrong_pairs, self.activation = wrong_pairs, activation
        self.mismatch = mismatch or MismatchedPairs(overlapping=activation == "sigmoid")
        self.balance = balance or GradientShare()
        self.draws = torch.Generator().manual_seed(seed)
        self.noise, self.too_good = noise, too_good
        self.accuracy = 0.5
        self.seed = seed

    @cached_property
    def noise_source(self) -> torch.Generator:
        """Where the noise comes from: its state is part of the checkpoints."""
        return torch.Generator(next(self.discriminator.parameters()).device).manual_seed(self.seed)

    @property
    def sources(self) -> list[torch.Generator]:
        """Where its random numbers come from."""
        return [self.noise_source, self.draws]

    def condition(self, image: Tensor) -> Tensor | None:
        """What the discriminator sees beside a segmentation: the image."""
        return image

    def judged(self, prediction: Tensor) -> Tensor:
        """What the discriminator sees of the generator's output: logits ``(B, classes, …)`` → hard labels, one-hot.

        Their gradient is that of the probabilities.
        """
        if self.activation == "sigmoid":
            soft = prediction.sigmoid()
            hard = (soft > 0.5).to(soft)
        else:
            soft = prediction.softmax(1)
            hard = one_hot(soft.detach().argmax(1, keepdim=True), num_classes=soft.shape[1], dtype=soft.dtype)
        return hard + (soft - soft.detach())  # the bracket is exactly 0

    def reference(self, label: Tensor, fake: Tensor) -> Tensor:
        """Label map ``(B, 1, …)`` and labels of the fake pair ``(B, classes, …)`` → those of the real pair."""
        if self.activation == "sigmoid":
            return (label > 0).to(fake)
        return one_hot(label.long().clamp_min(0), num_classes=fake.shape[1], dtype=fake.dtype)

    def known(self, label: Tensor, fake: Tensor) -> Tensor | float:
        """What of both segmentations is shown, ``(B, classes, …)``: what the label knows; 1 if that is everything.

        Reference and prediction are empty alike where it does not. A class that some voxel of the patch only may be is
        empty in the whole patch: else the place where it is shown would draw the reference's outline into both.
        """
        if bool((label >= 0).all()):
            return 1.0
        if self.activation == "sigmoid":
            return (label >= 0).to(fake)
        judged = label != IGNORED
        possible = possible_classes(label, fake.shape[1])
        unsure = possible & judged & (possible.sum(1, keepdim=True) > 1)
        return (judged & ~unsure.flatten(2).any(2).view(*fake.shape[:2], *[1] * (fake.ndim - 2))).to(fake)

    def fakes(self, real: Tensor, predicted: Tensor, known: Tensor | float = 1.0) -> Tensor:
        """Predictions ``(B, classes, …)``, some of them replaced by wrong pairs of the references, where known."""
        if not self.wrong_pairs:
            return predicted
        background = int(self.activation == "softmax")
        chosen = torch.rand(len(real), generator=self.draws) < self.wrong_pairs
        wrong, differs = self.mismatch(real[:, background:], self.draws)
        if background:
            wrong = torch.cat([1.0 - wrong.sum(1, keepdim=True), wrong], dim=1)
        if not isinstance(known, float):  # a pair that is wrong in the unknown alone is none
            wrong = wrong * known
            differs &= (wrong != real * known).flatten(1).any(1).to(differs.device)
        shown = (chosen & differs).to(real.device).view(-1, *[1] * (real.ndim - 1))
        return torch.where(shown, wrong, predicted)

    def learn(self, image: Tensor, label: Tensor, prediction: Tensor, share: float, update: bool) -> dict[str, float]:
        """One step of the discriminator on references and the generator's output, which gets no gradient.

        Returns its loss, the fractions of patches judged rightly, their mean, and whether it won too often to learn.
        """
        before = Buffers(self.discriminator)
        loss, real_accuracy, fake_accuracy = self.judge(image, label, prediction)
        self.accuracy = mean_over_processes(0.9 * self.accuracy + 0.05 * (real_accuracy + fake_accuracy))
        skips = self.accuracy > self.too_good
        if skips:
            self.step.clear()  # the generator cannot learn from an opponent that always wins
        elif not self.step.backward(loss, share) or (update and not self.step.update()):
            before.restore()  # what was skipped leaves no trace
        return {
            "discriminator_loss": loss.item(),
            "real_accuracy": real_accuracy,
            "fake_accuracy": fake_accuracy,
            "discriminator_accuracy": (real_accuracy + fake_accuracy) / 2.0,
            "discriminator_rested": float(skips),
        }

    def judge(self, image: Tensor, label: Tensor, prediction: Tensor) -> tuple[Tensor, float, float]:
        """Loss of the discriminator on references and predictions, and the fractions of both it judges rightly."""
        self.discriminator.train().requires_grad_(True)
        condition, predicted = self.condition(image), self.judged(prediction.detach())
        reference, known = self.reference(label, predicted), self.known(label, predicted)
        fake = self.fakes(reference, predicted * known, known)
        real = self._disturb(reference * known).requires_grad_(self.penalty > 0)
        judged_real: Judgement = self.discriminator(condition, real)
        judged_fake: Judgement = self.discriminator(condition, self._disturb(fake))
        loss = self.loss.discriminator(judged_real.logits, judged_fake.logits)
        if self.penalty:
            loss = loss + 0.5 * self.penalty * gradient_penalty(judged_real.logits, real)
        threshold = self.loss.threshold
        real_accuracy = _fraction([scale > threshold for scale in judged_real.logits])
        return loss, real_accuracy, _fraction([scale < threshold for scale in judged_fake.logits])

    def look(self, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        """Let the discriminator run on a pair of each kind, without a loss."""
        fake = self.judged(prediction)
        known = self.known(label, fake)
        for segmentation in (self.reference(label, fake) * known, fake * known):
            self.discriminator(self.condition(image), segmentation)

    def teach(self, image: Tensor, label: Tensor, prediction: Tensor, unlabelled: UnlabelledBatch | None) -> Tensor:
        """Mean loss of the generator over labelled and, if there are any, unlabelled images, from its logits.

        Gradient reaches the generator, not the discriminator's weights.
        """
        fake = self.judged(prediction)
        known = self.known(label, fake)
        loss = self._teach(image, fake * known, self.reference(label, fake) * known if self.feature_weight else None)
        if unlabelled is None or unlabelled.prediction is None:
            return loss
        other = self._teach(unlabelled.weak, self.judged(unlabelled.prediction), None)
        count, others = len(image), len(unlabelled.weak)
        return (count * loss + others * other) / (count + others)

    def _teach(self, image: Tensor, fake: Tensor, real: Tensor | None) -> Tensor:
        self.discriminator.train().requires_grad_(False)
        condition = self.condition(image)
        judged: Judgement = self.discriminator(condition, self._disturb(fake))
        loss = self.loss.generator(judged.logits)
        if real is not None:
            with torch.no_grad():
                target: Judgement = self.discriminator(condition, self._disturb(real))
            loss = loss + self.feature_weight * feature_matching(target.features, judged.features)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of the discriminator, its optimiser, its random numbers and its share."""
        return {
            "step": self.step.state_dict(),
            "accuracy": self.accuracy,
            "noise": self.noise_source.get_state(),
            "draws": self.draws.get_state(),
            "balance": self.balance.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.step.load_state_dict(state["step"])
        self.accuracy = state["accuracy"]
        if state["noise"] is not None:  # earlier versions saved no state before the first use
            self.noise_source.set_state(state["noise"].cpu())
        if "draws" in state:  # nor did they draw wrong pairs and hold a share
            self.draws.set_state(state["draws"].cpu())
            self.balance.load_state_dict(state["balance"])

    def _disturb(self, segmentation: Tensor) -> Tensor:
        if not self.noise:
            return segmentation
        source, device = self.noise_source, segmentation.device
        return segmentation + self.noise * torch.randn(segmentation.shape, generator=source, device=device)


def _fraction(flags: list[Tensor]) -> float:
    return float(torch.cat([flag.flatten() for flag in flags]).float().mean())
