"""Running statistics of a network, which a forward pass in training mode moves although nobody learns from it."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Buffers"]


class Buffers:
    """What the buffers of a network hold now, to go back to: batch statistics, their counters, spectral vectors.

    A network in training mode updates them in every forward pass. Where the pass teaches it nothing (the turn of its
    opponent, a batch that is skipped, a trial), they must be as if it had not been.
    """

    def __init__(self, *networks: nn.Module | None) -> None:
        self._kept = [
            (module, name, buffer, buffer.detach().clone())
            for network in networks
            if network is not None
            for module in network.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the old values back into the same tensors."""
        for module, name, buffer, value in self._kept:
            buffer.copy_(value)
            setattr(module, name, buffer)  # a module may have put another tensor in its place
