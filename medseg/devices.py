"""Which device computes, how memory is laid out on it, and kernels compiled for it.

The device that a run computes on.

Memory layout of images and weights: channels last, in which convolutions are fastest.

Kernels built for one network by ``torch.compile``, if a run asks for them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.errors import UsageError


def resolve_device(asked: str) -> str:
    """The device behind what was asked: ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Raises
    ------
    UsageError
        If torch knows no such device, or this machine has none.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(
            f"--device {asked}: torch knows no such device; give auto, cpu, cuda, cuda:N or mps"
        ) from error
    if device.type == "cuda" and not _has_cuda(device.index):
        raise UsageError(
            f"--device {asked}: torch finds {torch.cuda.device_count()} CUDA devices here; give auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {asked}: torch finds no MPS here; give auto or cpu")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"--device {asked}: medseg computes on cpu, cuda and mps; give one of them, or auto")
    return asked


def described(device: str) -> str:
    """A device with what it is, for people."""
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if torch.device(device).type == "cpu" else device


def _has_cuda(index: int | None) -> bool:
    return torch.cuda.is_available() and (index or 0) < torch.cuda.device_count()


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
