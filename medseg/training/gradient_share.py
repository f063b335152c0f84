"""How much the discriminator counts beside the labels: as a share of the supervised loss's gradient.

A constant weight means another thing in every task and at every time: what it does depends on how steep both losses
are. Their gradients are compared now and then on the way, at the generator's output (after Esser et al. 2021,
arXiv 2012.09841, who compare them at its last layer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medseg.training.distributed import mean_over_processes


class GradientShare:
    """The weight with which the adversarial loss has a wanted share of the supervised loss's gradient.

    The norms of both gradients are measured at the generator's output in every ``every``-th of its steps, which costs
    no pass through the generator, and averaged exponentially with the ``memory``; in between the weight stays. Where
    there is no supervised gradient at all (a generator that the discriminator alone teaches), the share is the weight.
    Processes agree on the norms.
    """

    def __init__(self, every: int = 10, memory: float = 0.9) -> None:
        if every < 1 or not 0.0 <= memory < 1.0:
            raise ValueError(f"found a measurement every {every} steps and a memory of {memory}; expected ≥ 1, 0 to 1")
        self.every, self.memory = every, memory
        self.supervised = self.adversarial = 0.0
        self._steps = self._measured = 0

    def weight(
        self, share: float, supervised: Tensor, adversarial: Tensor, outputs: Sequence[Tensor], scale: float = 1.0
    ) -> float:
        """The weight for this step of the generator, from its losses and its ``outputs`` that they were computed from.

        ``scale`` is that of the losses against underflow (fp16). A gradient that is not finite is not averaged.
        """
        if self._steps % self.every == 0:
            self._measure(supervised, adversarial, outputs, scale)
        self._steps += 1
        if not self.supervised:
            return share
        return share * self.supervised / self.adversarial if self.adversarial else 0.0

    def _measure(self, supervised: Tensor, adversarial: Tensor, outputs: Sequence[Tensor], scale: float) -> None:
        # squares, which add up over the items of a batch: their ratio is that of one process with all the items
        squares = [mean_over_processes(_norm(loss, outputs, scale) ** 2) for loss in (supervised, adversarial)]
        norms = [math.sqrt(square) for square in squares]
        if not all(map(math.isfinite, norms)):
            return
        old = min(self.memory, self._measured / (self._measured + 1.0))  # the first measurements count alike
        self.supervised = old * self.supervised + (1.0 - old) * norms[0]
        self.adversarial = old * self.adversarial + (1.0 - old) * norms[1]
        self._measured += 1

    def state_dict(self) -> dict[str, Any]:
        """The averages and the counters."""
        return {"norms": [self.supervised, self.adversarial], "counts": [self._steps, self._measured]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.supervised, self.adversarial = state["norms"]
        self._steps, self._measured = state["counts"]


def _norm(loss: Tensor, outputs: Sequence[Tensor], scale: float) -> float:
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss * scale, list(outputs), retain_graph=True, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) / scale if norms else 0.0
