"""The box round what was found: everything that is judged is judged there, in training as in use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MARGIN_VOXELS = 16
"""Surroundings that are judged with the structures."""


def found_labels(probabilities: Tensor) -> Tensor:
    """The most probable class ``(H, W, D)`` of probabilities ``(K, H, W, D)``."""
    return probabilities.max(0)[1]


def look_box(labels: Tensor) -> tuple[slice, slice, slice]:
    """The smaller box that the network looks at once more: 4 voxels of margin, 20 to 64 voxels a side if there are."""
    boxes = zip(region_of(labels, margin=4), labels.shape, strict=True)
    i, j, k = (_between(side, extent) for side, extent in boxes)
    return i, j, k


def _between(side: slice, extent: int) -> slice:
    """A side about the same middle, neither too short nor too long, inside the volume."""
    length = min(max(side.stop - side.start, 20), 64, extent)
    start = min(max((side.start + side.stop - length) // 2, 0), extent - length)
    return slice(start, start + length)


def region_of(labels: Tensor, limit: int = 1 << 23, margin: int = MARGIN_VOXELS) -> tuple[slice, slice, slice]:
    """Box round all structures with a margin, the whole grid if there are none; a box of too many voxels is trimmed.

    Parameters
    ----------
    labels
        Label map ``(H, W, D)``.
    limit
        Most voxels; the ends of the longest axes are left out above it.
    margin
        Surroundings, in voxels.
    """
    shape = labels.shape
    low, high = [0, 0, 0], list(shape)
    found = labels > 0
    if bool(found.any()):
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            where = torch.nonzero(found.any(others[1]).any(others[0])).flatten()
            low[axis] = max(int(where[0]) - margin, 0)
            high[axis] = min(int(where[-1]) + 1 + margin, shape[axis])
    size = _trimmed([b - a for a, b in zip(low, high, strict=True)], limit)
    starts = [a + (b - a - n) // 2 for a, b, n in zip(low, high, size, strict=True)]
    i, j, k = (slice(a, a + n) for a, n in zip(starts, size, strict=True))
    return i, j, k


def _trimmed(size: Sequence[int], limit: int) -> list[int]:
    """Sides cut to a common longest length, so that at most ``limit`` voxels are left."""
    if math.prod(size) <= limit:
        return list(size)
    low, high = 1, max(size)
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(np.prod([min(n, middle) for n in size])) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return [min(n, low) for n in size]
