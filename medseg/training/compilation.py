"""Kernels built for one network by ``torch.compile``, if a run asks for them."""

from __future__ import annotations

from torch import nn

from medseg.errors import UsageError

__all__ = ["compiled"]


def compiled(network: nn.Module, wanted: bool = True) -> nn.Module:
    """Let ``torch.compile`` build kernels for the network when it first runs; returns the same network.

    It is compiled in place: its class and the names of its state dict stay, so checkpoints and models are those of the
    plain network, and copies (the moving average) are plain. A C++ compiler must be there, the first steps take
    minutes, and the results differ from the plain network's by rounding.

    Raises
    ------
    UsageError
        If ``wanted`` is neither true nor false, such as the text "false".
    """
    if not isinstance(wanted, bool):
        raise UsageError(f"compile is {wanted!r}, expected true or false (True or False on MONAI's command line)")
    if wanted:
        network.compile()
    return network
