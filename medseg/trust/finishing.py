"""Finish a discriminator: teach it how wrong every patch is, on results of many qualities with their references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from medseg.trust.critic import Critic, local_errors
from medseg.trust.region import found_labels, region_of

__all__ = ["Finishing", "Judged", "finish"]


class Judged(Protocol):
    """A result with its reference."""

    @property
    def image(self) -> Tensor:
        """``(C, H, W, D)``."""

    @property
    def probabilities(self) -> Tensor:
        """``(K, H, W, D)``."""

    @property
    def reference(self) -> NDArray[np.uint8]:
        """``(H, W, D)``."""


@dataclass(frozen=True)
class Finishing:
    """How a discriminator is finished.

    Parameters
    ----------
    steps
        Updates.
    batch
        Cases per update.
    learning_rate
        The largest, reached after a tenth of the steps; it ends at zero.
    dice_weight
        Weight of the error of the whole case's Dice beside that of the patches.
    seed
        Of the order and of the augmentation.
    progress
        Called after every step with its number.
    """

    steps: int = 300
    batch: int = 4
    learning_rate: float = 2e-3
    dice_weight: float = 2.0
    seed: int = 0
    progress: Callable[[int], None] = field(default=lambda _: None, compare=False)


def finish(critic: Critic, cases: Sequence[Judged], options: Finishing | None = None) -> Critic:
    """Train ``critic`` on cases that the network has not been trained on; it is changed in place and returned."""
    options = options or Finishing()
    rng = np.random.default_rng(options.seed)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    critic.train()
    order: list[int] = []
    for step in range(options.steps):
        for _ in range(options.batch):
            order = order or rng.permutation(len(cases)).tolist()
            loss = _loss(critic, cases[order.pop()], options.dice_weight, rng) / options.batch
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        options.progress(step + 1)
    return critic.eval()


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _loss(critic: Critic, case: Judged, dice_weight: float, rng: np.random.Generator) -> Tensor:
    image, probabilities, reference = _augmented(case, rng)
    labels = found_labels(probabilities)
    wanted = one_hot(reference.long(), len(probabilities)).movedim(-1, 0)
    target = local_errors(labels[None], wanted[None], critic.shape.stride)
    logits = critic(image[None], probabilities[None])
    # where nothing is and nothing should be there is little to learn; it counts a tenth
    matters = (target.sum(1, keepdim=True) > 0) | (logits.detach().amax(1, keepdim=True) > -3.0)
    weight = torch.where(matters, 1.0, 0.1).expand_as(logits)
    patches = binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / weight.sum()
    _, _, dice = critic.totals(logits, probabilities[None])
    mask = one_hot(labels, len(probabilities)).movedim(-1, 0)[1:].float()
    truth = wanted[1:].float()
    total = (mask.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp_min(1.0)
    true_dice = 2 * (mask * truth).sum((1, 2, 3)) / total
    return patches + dice_weight * (dice - true_dice).abs().mean()


def _augmented(case: Judged, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The structures with more or less of their surroundings, at another brightness, mirrored half of the time."""
    box = region_of(found_labels(case.probabilities))
    i, j, k = (_narrowed(side, rng) for side in box)
    image = case.image[:, i, j, k]
    image = image * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1))
    image = image + float(rng.uniform(0.0, 0.1)) * torch.from_numpy(rng.standard_normal(image.shape).astype(np.float32))
    parts = [image, case.probabilities[:, i, j, k], torch.from_numpy(case.reference)[i, j, k]]
    if rng.random() < 0.5:
        parts = [part.flip(-3) for part in parts]
    return parts[0], parts[1], parts[2]


def _narrowed(side: slice, rng: np.random.Generator) -> slice:
    """A side of the box, up to a fifth shorter at each end; what is cut changes where patches begin."""
    most = (side.stop - side.start) // 5
    return slice(side.start + int(rng.integers(0, most + 1)), side.stop - int(rng.integers(0, most + 1)))
