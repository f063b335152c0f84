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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import MissingDependency
from medseg.inference.engines import REFERENCE, Engine, build_engine, candidates
from medseg.inference.windows import WindowSettings, plan_windows

__all__ = [
    "SMALLEST_AGREEMENT",
    "Choice",
    "Windows",
    "agreement",
    "available_bytes",
    "bytes_per_voxel",
    "fastest_engine",
    "large_window",
]

Windows = Literal["bundle", "large"]
"""The bundle's own windows, or windows as large as memory allows, up to the whole volume."""

SMALLEST_AGREEMENT = 0.999
"""Smallest Dice with the bundle's own result that a faster way must reach, for every structure."""

_SMALLEST_GAIN = 1.15
_REPEATS = 2
_ASSUMED_BYTES = 4 << 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How the network is run.

    Parameters
    ----------
    engine
        Name of the engine.
    windows
        ``"bundle"``: the bundle's own windows; ``"large"``: as large as memory allows, up to the whole volume.
    agreement
        Smallest Dice over structures with the bundle's own result, measured on ``measured_on``; None if nothing was
        measured because the reference is used.
    measured_on
        Case id.
    speedup
        How many times faster than the reference, as measured.
    """

    engine: str = REFERENCE
    windows: str = "bundle"
    agreement: float | None = None
    measured_on: str | None = None
    speedup: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The choice as in ``run.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Choice:
        """Read what :meth:`to_json` wrote."""
        return cls(**value)


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


def bytes_per_voxel(engine: Engine, window: torch.Tensor) -> float:
    """What the layers of a network write per voxel of a window: an upper bound of the memory that they need.

    Parameters
    ----------
    engine
        An engine around a torch module.
    window
        ``(1, C, *roi)``.
    """
    module = getattr(engine, "network", None)
    if not isinstance(module, torch.nn.Module):
        return math.inf
    written = 0

    def count(_: torch.nn.Module, __: Any, output: Any) -> None:
        nonlocal written
        written += output.nbytes if isinstance(output, torch.Tensor) else 0

    leaves = [layer for layer in module.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        engine(window)
    finally:
        for hook in hooks:
            hook.remove()
    return written / math.prod(window.shape[2:])


def available_bytes(device: str = "cpu") -> int:
    """Memory that a device can give now; 4 GiB where it does not say."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _ASSUMED_BYTES


def large_window(shape: Sequence[int], own: WindowSettings, per_voxel: float, budget_bytes: float) -> WindowSettings:
    """The largest window that fits into memory: the whole volume, or cut along its longest axes.

    Its size is a multiple of the largest power of two in the bundle's window, so that the network's strides fit.

    Parameters
    ----------
    shape
        Shape of the volume on the network's grid.
    own
        The bundle's window.
    per_voxel
        Bytes that the network needs per voxel of a window.
    budget_bytes
        What it may use.
    """
    steps = [r & -r for r in plan_windows(shape, own).roi_size]
    size = [max(math.ceil(n / s) * s, r) for n, s, r in zip(shape, steps, own.roi_size, strict=True)]
    while math.prod(size) * per_voxel > budget_bytes:
        axis = int(np.argmax([n / r for n, r in zip(size, own.roi_size, strict=True)]))
        smaller = math.ceil(size[axis] / 2 / steps[axis]) * steps[axis]
        if smaller <= own.roi_size[axis]:
            return own
        size[axis] = smaller
    return own.scaled_to(size)
