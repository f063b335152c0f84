"""Exponential moving average of the generator's weights: validated and shipped instead of the last ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["WarmAverage", "averaged"]


class WarmAverage:
    """Averaging rule for torch's ``AveragedModel``: the memory grows with the run up to ``decay``.

    A fixed decay would keep the random initial weights in the average for the first few hundred steps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        """Move ``average`` towards ``current``; whole numbers (such as batch counters) are copied."""
        steps = int(count)
        weight = 1.0 - min(self.decay, (1.0 + steps) / (10.0 + steps))
        for mean, value in zip(average, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), weight)
            else:
                mean.copy_(value)


def averaged(network: nn.Module, decay: float = 0.99) -> AveragedModel:
    """Copy of ``network`` that follows it as an exponential moving average, batch statistics included."""
    return AveragedModel(network, multi_avg_fn=WarmAverage(decay), use_buffers=True)
