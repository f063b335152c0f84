"""The device is the best there is or the one asked for; a number format is taken where the hardware computes in it."""

from __future__ import annotations

import pytest
import torch

from medseg.devices import computes_bf16, fast_dtype, resolve_device
from medseg.errors import UsageError


def test_the_device_is_the_best_there_is_or_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (resolve_device("auto"), resolve_device("cuda:1"), resolve_device("cpu")) == ("cuda", "cuda:1", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for absent in ("cuda", "cuda:7", "mps", "meta", "gpu"):
        with pytest.raises(UsageError, match=f"--device {absent}"):
            resolve_device(absent)


def test_bf16_is_taken_where_the_hardware_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert fast_dtype(cuda) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert fast_dtype(cuda) == torch.bfloat16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not computes_bf16(cpu)
    assert fast_dtype(cpu) == fast_dtype(torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_dtype(cpu) == torch.bfloat16
    assert fast_dtype(cpu, "fp16") == torch.float16
    with pytest.raises(UsageError, match="expected one of auto, fp32, bf16, fp16"):
        fast_dtype(cpu, "int8")  # type: ignore[arg-type]
