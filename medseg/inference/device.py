"""The device that a run computes on."""

from __future__ import annotations

import torch

from medseg.errors import UsageError

__all__ = ["described", "resolve_device"]


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
