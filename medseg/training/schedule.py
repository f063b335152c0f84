"""When which network learns, and how much the discriminator counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["AdversarialSchedule", "OneCycle", "Turn"]


@dataclass(frozen=True)
class Turn:
    """What happens with one batch.

    Attributes
    ----------
    discriminator_steps, generator_steps
        Updates of each network.
    weight
        Weight of the adversarial loss in the generator's loss; 0 leaves the discriminator out of it.
    """

    discriminator_steps: int
    generator_steps: int
    weight: float


@dataclass(frozen=True)
class AdversarialSchedule:
    """Warm-up of the generator, alternation, and the ramp of the adversarial weight; a pure function of time.

    Parameters
    ----------
    weight
        Final weight λ of the adversarial loss.
    warm_up
        Iterations in which only the generator learns, from the supervised loss alone.
    settle
        Iterations after the warm-up in which the discriminator learns already but does not count yet.
    ramp
        Iterations over which the weight rises from 0 to λ after that.
    alternate
        ``"iteration"``: each batch gives ``discriminator_steps`` and ``generator_steps`` updates. ``"epoch"``:
        after the warm-up, odd epochs train the discriminator, even epochs the generator (1: D, 2: G, 3: D …).
    discriminator_steps, generator_steps
        Updates per batch.
    """

    weight: float = 0.05
    warm_up: int = 0
    settle: int = 0
    ramp: int = 0
    alternate: Literal["iteration", "epoch"] = "iteration"
    discriminator_steps: int = 1
    generator_steps: int = 1

    def __post_init__(self) -> None:
        if min(self.weight, self.warm_up, self.settle, self.ramp) < 0:
            raise ValueError(f"weight, warm_up, settle and ramp must not be negative; found {self}")
        if min(self.discriminator_steps, self.generator_steps) < 1:
            raise ValueError(f"each network needs at least one step per turn; found {self}")
        if self.alternate not in ("iteration", "epoch"):
            raise ValueError(f"alternate is {self.alternate!r}, expected 'iteration' or 'epoch'")

    def turn(self, iteration: int, epoch: int) -> Turn:
        """What to do at a 1-based ``iteration`` of a 1-based ``epoch``."""
        passed = iteration - self.warm_up
        if self.weight == 0.0 or passed <= 0:
            return Turn(0, self.generator_steps, 0.0)
        weight = self.weight_at(iteration)
        if self.alternate == "iteration":
            return Turn(self.discriminator_steps, self.generator_steps, weight)
        if epoch % 2 == 1:
            return Turn(self.discriminator_steps, 0, 0.0)
        return Turn(0, self.generator_steps, weight)

    def weight_at(self, iteration: int) -> float:
        """Weight of the adversarial loss at a 1-based ``iteration``."""
        passed = iteration - self.warm_up - self.settle
        if passed <= 0:
            return 0.0
        return self.weight * min(1.0, passed / self.ramp) if self.ramp else self.weight


@dataclass
class OneCycle:
    """Factor of the learning rate: linear rise, then half a cosine down (Smith 2018), for torch's ``LambdaLR``.

    Parameters
    ----------
    total
        Optimiser steps of the whole run; later steps keep the last factor.
    rise
        Fraction of them spent rising.
    start, end
        Factor at the beginning and at the end.
    """

    total: int
    rise: float = 0.1
    start: float = 0.05
    end: float = 0.001

    def __call__(self, step: int) -> float:
        """Factor at a 0-based ``step``."""
        rising = max(1.0, self.rise * self.total)
        if step < rising:
            return self.start + (1.0 - self.start) * step / rising
        done = min(1.0, (step - rising) / max(1.0, self.total - rising))
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * done))
