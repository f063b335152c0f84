"""Memory layout of images and weights: channels last, in which convolutions are fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["channels_last", "use_channels_last"]


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor in the channels-last layout if it is a batch of images or volumes, else as it is."""
    return tensor.contiguous(memory_format=_layout(tensor.ndim)) if tensor.ndim in (4, 5) else tensor


def use_channels_last(*networks: nn.Module | None) -> None:
    """Give the weights of convolutions the channels-last layout; None is left out."""
    for network in networks:
        for parameter in [] if network is None else network.parameters():
            parameter.data = channels_last(parameter.data)


def _layout(ndim: int) -> torch.memory_format:
    return torch.channels_last_3d if ndim == 5 else torch.channels_last
