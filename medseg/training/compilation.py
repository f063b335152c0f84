"""Kernels built for one network by ``torch.compile``, if a run asks for them."""

from __future__ import annotations

from torch import nn

__all__ = ["compiled"]


def compiled(network: nn.Module, wanted: bool = True) -> nn.Module:
    """Let ``torch.compile`` build kernels for the network when it first runs; returns the same network.

    It is compiled in place: its class and the names of its state dict stay, so checkpoints and models are those of the
    plain network, and copies (the moving average) are plain. A C++ compiler must be there, the first steps take
    minutes, and the results differ from the plain network's by rounding.
    """
    if wanted:
        network.compile()
    return network
