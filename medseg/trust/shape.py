"""What the mask alone says: is this what such a structure looks like?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

__all__ = ["shape_scores"]


def shape_scores(labels: NDArray[np.uint8], spacing_mm: Sequence[float], classes: int) -> dict[str, float]:
    """Volume, pieces, extents, compactness and position of every structure, as ``NAME[label]``.

    Parameters
    ----------
    labels
        Label map ``(H, W, D)``.
    spacing_mm
        Voxel size.
    classes
        Number of classes with the background.

    Notes
    -----
    All are finite, also for a structure that was not found. ``surface[c]`` is the share of voxels with a neighbour
    outside, relative to that of a ball; ``offset-x``, ``-y`` and ``-z[c]`` lead from the centre of all structures to
    that of this one, in mm; ``other[c]`` is the log ratio of its volume to that of the others.
    """
    voxel_ml = math.prod(spacing_mm) / 1000.0
    step = np.asarray(spacing_mm, dtype=np.float64)
    scores: dict[str, float] = {}
    total = int((labels > 0).sum())
    middle = np.argwhere(labels > 0).mean(axis=0) if total else np.zeros(3)
    for label in range(1, classes):
        mask = labels == label
        count = int(mask.sum())
        where = np.argwhere(mask) if count else np.zeros((1, 3))
        extent = np.sort((np.ptp(where, axis=0) + 1) * step)[::-1] if count else np.zeros(3)
        offset = (where.mean(axis=0) - middle) * step if count else np.zeros(3)
        scores[f"log-volume[{label}]"] = math.log(max(count * voxel_ml, 1e-3))
        scores[f"other[{label}]"] = math.log((count + 1.0) / (total - count + 1.0)) if classes > 2 else 0.0
        scores |= {f"extent-{i}[{label}]": float(e) for i, e in enumerate(extent)}
        scores |= {f"offset-{axis}[{label}]": float(o) for axis, o in zip("xyz", offset, strict=True)}
        scores |= {f"{name}[{label}]": value for name, value in _pieces(mask, where, count).items()}
    return scores


def _pieces(mask: NDArray[np.bool_], where: NDArray[Any], count: int) -> dict[str, float]:
    if not count:
        return {"pieces": 0.0, "largest": 0.0, "surface": 0.0}
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = np.pad(mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], 1)
    pieces, number = cc3d.connected_components(box, connectivity=26, return_N=True)
    inner = box.copy()
    for axis in range(3):
        inner &= np.roll(box, 1, axis) & np.roll(box, -1, axis)
    rim = count - int(inner.sum())
    ball = 4.836 * count ** (2 / 3)  # surface of the ball of this volume, in voxel faces
    largest = int(np.bincount(pieces.ravel())[1:].max())
    return {"pieces": math.log(float(number)), "largest": largest / count, "surface": rim / ball}
