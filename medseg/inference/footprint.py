"""Windows as large as memory allows: what a network needs for them, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from medseg.inference.engines import Engine
from medseg.inference.sliding_window import WindowSettings, plan_windows


@dataclass(frozen=True)
class Footprint:
    """What a network needs of a window.

    Parameters
    ----------
    bytes_per_voxel
        What its layers write per voxel of a window: an upper bound of the memory that they need.
    strides
        By how much it shrinks a window along the three axes. It sees a voxel alike in two windows only if their
        starts differ by multiples of these.
    """

    bytes_per_voxel: float
    strides: tuple[int, int, int]


def measure_footprint(engine: Engine, window: torch.Tensor) -> Footprint:
    """Watch the layers of a network while it computes one window.

    Parameters
    ----------
    engine
        An engine around a torch module.
    window
        ``(1, C, *roi)``.
    """
    module = getattr(engine, "network", None)
    size = tuple(window.shape[2:])
    if not isinstance(module, torch.nn.Module):
        return Footprint(math.inf, _strides(size, size))
    written, smallest = 0, list(size)

    def watch(_: torch.nn.Module, __: Any, output: Any) -> None:
        nonlocal written, smallest
        if isinstance(output, torch.Tensor):
            written += output.nbytes
            if output.ndim == window.ndim:
                smallest = [min(pair) for pair in zip(smallest, output.shape[2:], strict=True)]

    leaves = [layer for layer in module.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(watch) for layer in leaves]
    try:
        engine(window)
    finally:
        for hook in hooks:
            hook.remove()
    return Footprint(written / math.prod(size), _strides(size, smallest))


def _strides(size: Sequence[int], smallest: Sequence[int]) -> tuple[int, int, int]:
    """The power of two by which each axis shrinks; a layer that pools over everything says no more than the window."""
    a, b, c = (min(n & -n, 1 << (math.ceil(n / m) - 1).bit_length()) for n, m in zip(size, smallest, strict=True))
    return a, b, c


def large_window(shape: Sequence[int], own: WindowSettings, need: Footprint, budget_bytes: float) -> WindowSettings:
    """Windows as few as memory allows, laid on the volume's own voxels.

    Nothing is padded but what the bundle's own window pads: zeros round a volume, and windows that start between the
    strides of a network, change labels far from any border. One window covers an axis whose length the network takes
    as it is; otherwise two or more do, which overlap and begin and end where the volume does.

    Parameters
    ----------
    shape
        Shape of the volume on the network's grid.
    own
        The bundle's window.
    need
        What the network needs of a window.
    budget_bytes
        What all its layers may write.
    """
    roi = [r if r > 0 else n for n, r in zip(shape, own.roi_size, strict=True)]
    axes = [
        _Axis(max(n, r), r, stride, min(math.ceil(r * o / stride) * stride, r - stride))
        for n, r, o, stride in zip(shape, roi, own.overlap, need.strides, strict=True)
    ]
    counts = [1 if axis.length % axis.stride == 0 else 2 for axis in axes]
    while True:
        size = [axis.window(count) for axis, count in zip(axes, counts, strict=True)]
        excess = [n / axis.own for n, axis in zip(size, axes, strict=True)]
        widest = excess.index(max(excess))
        if excess[widest] <= 1:
            return own
        if math.prod(size) * need.bytes_per_voxel <= budget_bytes:
            break
        counts[widest] += 1
    # half a voxel less than what is repeated, so that rounding cannot shift the next window
    overlap = tuple(max(axis.repeated - 0.5, 0.0) / n for axis, n in zip(axes, size, strict=True))
    found = replace(own, roi_size=tuple(size), overlap=overlap, batch_size=1)
    fewer = len(plan_windows(shape, found).starts) < len(plan_windows(shape, own).starts)
    return found if fewer else own


@dataclass(frozen=True)
class _Axis:
    """One axis: its length, the bundle's window, the network's stride, and what the next window repeats, in voxels."""

    length: int
    own: int
    stride: int
    repeated: int

    def window(self, count: int) -> int:
        """Size of ``count`` windows that cover the axis, or the bundle's own if they would be smaller."""
        if count == 1:
            return self.length
        even = math.ceil((self.length + (count - 1) * self.repeated) / count)
        fitting = min(math.ceil(even / self.stride), self.length // self.stride) * self.stride
        return max(fitting, self.own)
