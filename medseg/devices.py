"""Which device computes, which number format is fast on it, the layout of memory, and kernels compiled for it."""

from __future__ import annotations

import platform
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import UsageError

Precision = Literal["auto", "fp32", "bf16", "fp16"]

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by their names in options and files."""

FORMAT_NAMES = {dtype: name for name, dtype in FORMATS.items()}


def resolve_device(asked: str) -> str:
    """The device behind what was asked: ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Raises ``UsageError`` if torch knows no such device, or this machine has none.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"--device {asked}: torch knows none such; give auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and not _has_cuda(device.index):
        raise UsageError(f"--device {asked}: torch finds {torch.cuda.device_count()} CUDA devices; give auto or cpu")
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


def fast_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Format for convolutions on ``device``.

    ``"auto"`` takes bf16 where the hardware computes in it, fp16 on older CUDA devices, and fp32 otherwise. Raises
    ``UsageError`` if there is no such format.
    """
    if precision in FORMATS:
        return FORMATS[precision]
    if precision != "auto":
        raise UsageError(f"found the precision {precision!r}, expected one of auto, {', '.join(FORMATS)}")
    if computes_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bf16: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX.

    Elsewhere it is emulated, some thirty times slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this yet; an older one without these functions falls back to fp32
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return device.type == "cpu" and any(bool(probe()) for probe in probes if probe is not None)


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
    minutes, and the results differ from the plain network's by rounding. Raises ``UsageError`` if ``wanted`` is neither
    true nor false, such as the text "false".
    """
    if not isinstance(wanted, bool):
        raise UsageError(f"compile is {wanted!r}, expected true or false (True or False on MONAI's command line)")
    if wanted:
        network.compile()
    return network


def processor(device: torch.device) -> str:
    """What computes, as far as results depend on it: the processor and torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__}"
