"""How the network is run: by a rule from what was asked, never by the clock, so that a command gives the same labels.

On a CPU and on Apple's MPS the rule is the bundle's network in float32 on the bundle's own windows. Every other way
rounds differently and may move a label here and there, on the next case if not on the one that was tried; so it is
asked for by name. On CUDA the rule is automatic mixed precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from medseg.errors import UsageError
from medseg.inference.engines import AUTOCAST, REFERENCE, candidates
from medseg.inference.quantised import INT8

Windows = Literal["bundle", "large"]
"""The bundle's own windows, or as few and large ones as memory allows, up to the whole volume."""

_BY_PRECISION = {"fp32": REFERENCE, "bf16": "torch-bf16-channels-last", "int8": INT8}
_AMP = "amp-fp16"


@dataclass(frozen=True)
class EngineChoice:
    """How the network is run.

    Parameters
    ----------
    engine
        Name of the engine.
    windows
        ``"bundle"``: the bundle's own windows; ``"large"``: as few as memory allows, up to the whole volume.
    memory_bytes
        What large windows may take, so that all processes of a run lay the same ones; None for the bundle's own.
    """

    engine: str = REFERENCE
    windows: str = "bundle"
    memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The choice as in ``run.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineChoice:
        """Read what :meth:`to_json` wrote."""
        return cls(**value)


def engine_of(device: str, precision: str = "auto", engine: str = "auto") -> str:
    """Name of the engine that runs the network.

    Parameters
    ----------
    device
        Torch device.
    precision
        ``"fp32"``, ``"bf16"`` or ``"int8"`` as asked; ``"auto"``: as the rule says.
    engine
        An engine by name; ``"auto"``: the one for ``precision``.

    Raises
    ------
    UsageError
        If this machine has no such engine, or both were asked for.
    """
    if engine == "auto":
        by_rule = AUTOCAST if torch.device(device).type == "cuda" else REFERENCE
        return _BY_PRECISION.get(precision, by_rule)
    if precision != "auto":
        raise UsageError(f"--engine {engine} fixes the precision, found --precision {precision}, too; give one of them")
    known = candidates(device)
    if engine not in known:
        raise UsageError(f"--engine {engine}: this machine has {', '.join(known)} on {device}; choose one of them")
    return engine


def precision_of(engine: str) -> str:
    """The precision that an engine computes in: ``fp32``, ``bf16``, ``int8`` or ``amp-fp16``."""
    return _AMP if engine == AUTOCAST else next(part for part in engine.split("-") if part in _BY_PRECISION)
