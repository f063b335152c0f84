"""Which engine and which windows a run uses: measured once, against the bundle's own way of computing.

A faster way is taken only if it gives the same labels: Dice of every structure at least :data:`SMALLEST_AGREEMENT`
with what the bundle's network gives in float32 on the bundle's own windows, on the run's first case.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import MissingDependency
from medseg.inference.engines import REFERENCE, Engine, build_engine, candidates

__all__ = [
    "SMALLEST_AGREEMENT",
    "Choice",
    "Windows",
    "agreement",
    "fastest_engine",
]

Windows = Literal["bundle", "large"]
"""The bundle's own windows, or as few and large ones as memory allows, up to the whole volume."""

SMALLEST_AGREEMENT = 0.999
"""Smallest Dice with the bundle's own result that a faster way must reach, for every structure."""

_LARGER = 1.1
"""Volumes so many times longer than the one measured are still taken to be like it."""

_SMALLEST_GAIN = 1.15
_REPEATS = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How the network is run.

    Parameters
    ----------
    engine
        Name of the engine.
    windows
        ``"bundle"``: the bundle's own windows; ``"large"``: as few as memory allows, up to the whole volume.
    agreement
        Smallest Dice over structures with the bundle's own result, measured on ``measured_on``; None if nothing was
        measured because the reference is used.
    measured_on
        Case id.
    speedup
        How many times faster than the reference, as measured.
    memory_bytes
        What large windows may take, so that all processes of a run lay the same ones; None for the bundle's own.
    measured_shape
        Voxels of that case on the network's grid, if large windows were measured: in a larger volume they may agree
        less. None if they were asked for.
    """

    engine: str = REFERENCE
    windows: str = "bundle"
    agreement: float | None = None
    measured_on: str | None = None
    speedup: float | None = None
    memory_bytes: int | None = None
    measured_shape: tuple[int, ...] | None = None

    def windows_for(self, shape: Sequence[int]) -> str:
        """The windows for a volume of that shape: the bundle's own if it is larger than what was measured."""
        known = self.measured_shape
        if known is not None and any(n > _LARGER * m for n, m in zip(shape, known, strict=True)):
            return "bundle"
        return self.windows

    def to_json(self) -> dict[str, Any]:
        """The choice as in ``run.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Choice:
        """Read what :meth:`to_json` wrote."""
        shape = value.get("measured_shape")
        return cls(**{**value, "measured_shape": None if shape is None else tuple(shape)})


def agreement(found: NDArray[np.integer[Any]], expected: NDArray[np.integer[Any]]) -> float | None:
    """Smallest Dice over the structures in either label map; None if both are empty, which proves nothing."""
    size = int(max(found.max(), expected.max())) + 1
    a, b = np.bincount(found.reshape(-1), minlength=size), np.bincount(expected.reshape(-1), minlength=size)
    both = np.bincount(expected[found == expected], minlength=size)
    total = a + b
    present = np.flatnonzero(total[1:]) + 1
    return float((2 * both[present] / total[present]).min()) if len(present) else None


def fastest_engine(
    window: torch.Tensor, network: Callable[[], torch.nn.Module], device: str, *, compiled: bool = True
) -> tuple[Engine, float]:
    """Time the candidate engines on one window and return the fastest, with its gain over the reference.

    Parameters
    ----------
    window
        ``(1, C, *roi)``, from a real case.
    network
        Gives the network in evaluation mode; called once per engine.
    device
        Torch device.
    compiled
        Whether engines that compile first are tried, which takes many seconds.
    """
    reference = build_engine(REFERENCE, network(), device)
    expected = reference(window).max(dim=1)[1]
    reference_s = _seconds(reference, window)
    best, best_s = reference, reference_s / _SMALLEST_GAIN
    names = [name for name in candidates(device)[1:] if compiled or not name.startswith("openvino")]
    for name in names:
        try:
            engine = build_engine(name, network(), device)
            same = (engine(window).max(dim=1)[1] == expected).float().mean().item()
        except (MissingDependency, RuntimeError) as error:
            _log.info("engine %s cannot be used: %s", name, type(error).__name__)
            continue
        seconds = _seconds(engine, window) if same >= SMALLEST_AGREEMENT else math.inf
        _log.info("engine %s: %.3f s a window (reference %.3f), same labels %.5f", name, seconds, reference_s, same)
        if seconds < best_s:
            best, best_s = engine, seconds
    return best, 1.0 if best is reference else reference_s / best_s


def _seconds(engine: Engine, window: torch.Tensor) -> float:
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        engine(window)
        times.append(time.perf_counter() - begin)
    return min(times)
