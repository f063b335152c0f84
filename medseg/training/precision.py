"""Which number format a device computes fast, and the context to use it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

__all__ = ["Precision", "autocast", "fast_dtype", "needs_scaler"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def fast_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Format for convolutions on ``device``.

    ``"auto"`` takes bf16 where the hardware computes in it (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX),
    fp16 on older CUDA devices, and fp32 otherwise, since emulated bf16 is slower than fp32.
    """
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Context in which networks compute in ``dtype``; nothing for fp32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def needs_scaler(dtype: torch.dtype) -> bool:
    """Whether gradients may underflow in ``dtype``, so that losses have to be scaled."""
    return dtype == torch.float16


def _cpu_has_bf16() -> bool:
    # torch has no public question for this yet; an older one without these functions falls back to fp32
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(probe()) for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)
