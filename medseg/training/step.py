"""One network's update: scaling, accumulation, clipping, the optimiser, the learning rate; its moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from medseg.errors import TrainingDiverged
from medseg.training.distributed import average_gradients, in_any_process, same_start
from medseg.training.schedule import group_options, restore_rates

_PATIENCE = 10
"""Consecutive batches with a loss or a gradient that is not finite after which a run stops."""


class NetworkStep:
    """Turns losses of one network into updates, and refuses losses that are not finite.

    The ``name`` is for messages; the scheduler advances with every update; gradients are clipped to the total norm
    ``max_norm``; losses are ``scaled`` against underflow (fp16).
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        scheduler: LRScheduler | None = None,
        max_norm: float = math.inf,
        scaled: bool = False,
    ) -> None:
        self.name, self.network, self.optimizer, self.scheduler = name, network, optimizer, scheduler
        self.max_norm = max_norm
        self.options = group_options(optimizer)
        same_start(network)
        self.scaler = torch.amp.GradScaler(enabled=scaled)
        self.skipped_in_a_row = self.skipped = 0

    def backward(self, loss: Tensor, share: float = 1.0) -> bool:
        """Add the gradient of ``share`` × loss; False, and no gradient, if the loss is not finite in some process."""
        if in_any_process(not torch.isfinite(loss)):
            self._skip("loss")
            return False
        torch.autograd.backward(self.scaler.scale(loss * share))
        return True

    def update(self) -> bool:
        """Clip, step, advance the learning rate, clear the gradients; False if a gradient was not finite."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        average_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        finite = bool(torch.isfinite(norm))
        if finite or self.scaler.is_enabled():  # an enabled scaler skips by itself and lowers its scale
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.clear()
        if not finite:
            if not self.scaler.is_enabled() or self.scaler.get_scale() < 1.0:  # no longer a scale that is too large
                self._skip("gradient")
            return False
        self.skipped_in_a_row = 0
        if self.scheduler is not None:
            self.scheduler.step()
        return True

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs, loadable with ``weights_only=True``."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "options": self.options,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": [self.skipped_in_a_row, self.skipped],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state; rates, their schedule and other options are those of this step."""
        self.network.load_state_dict(state["network"])
        restore_rates(self.optimizer, self.scheduler, state, self.options)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped_in_a_row, self.skipped = state["skipped"]

    def _skip(self, what: str) -> None:
        self.clear()
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= _PATIENCE:
            raise TrainingDiverged(
                f"the {self.name}'s {what} was not finite in {self.skipped_in_a_row} batches in a row; expected a "
                "number. Lower the learning rate or the adversarial weight, look for NaN in the images with "
                "'medseg manifest audit', and go on from the last checkpoint with --resume"
            )


def averaged(network: nn.Module, decay: float = 0.99) -> AveragedModel:
    """Copy of ``network`` that follows it as an exponential moving average, batch statistics included.

    Its memory grows with the run up to ``decay``: a fixed one would keep the random initial weights in the average for
    the first few hundred steps.
    """

    @torch.no_grad()
    def follow(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        weight = 1.0 - min(decay, (1.0 + steps) / (10.0 + steps))
        for mean, value in zip(average, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), weight)
            else:
                mean.copy_(value)  # whole numbers, such as batch counters

    return AveragedModel(network, multi_avg_fn=follow, use_buffers=True)


class Buffers:
    """What the buffers of a network hold now, to go back to: batch statistics, their counters, spectral vectors.

    A network in training mode updates them in every forward pass. Where the pass teaches it nothing (the turn of its
    opponent, a batch that is skipped, a trial), they must be as if it had not been.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._kept = [
            (module, name, buffer, buffer.detach().clone())
            for network in networks
            for module in network.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the old values back into the same tensors."""
        for module, name, buffer, value in self._kept:
            buffer.copy_(value)
            setattr(module, name, buffer)  # a module may have put another tensor in its place
