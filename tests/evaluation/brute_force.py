"""The metrics by definition, with loops over pairs: slow, and short enough to be believed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_NEIGHBOURS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def surface_points(mask: Mask) -> NDArray[np.intp]:
    points = []
    for i, j, k in np.argwhere(mask):
        for di, dj, dk in _NEIGHBOURS:
            x, y, z = i + di, j + dj, k + dk
            inside = 0 <= x < mask.shape[0] and 0 <= y < mask.shape[1] and 0 <= z < mask.shape[2]
            if not inside or not mask[x, y, z]:
                points.append((i, j, k))
                break
    return np.array(points)


def directed_distances(points: Any, others: Any, axes_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    differences = (points[:, None, :] - others[None, :, :]) @ axes_mm.T
    return np.asarray(np.sqrt((differences**2).sum(axis=2)).min(axis=1), dtype=np.float64)


def linear_percentile(values: NDArray[np.float64], percentile: float) -> float:
    ordered = np.sort(values)
    position = percentile / 100.0 * (len(ordered) - 1)
    below = int(np.floor(position))
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (position - below) * (ordered[above] - ordered[below]))


def surface_metrics(prediction: Mask, reference: Mask, axes_mm: Any, tolerance_mm: float) -> dict[str, float]:
    """HD, HD95, ASSD, MASD and NSD of two masks that are not empty."""
    axes = np.asarray(axes_mm, dtype=np.float64)
    p, r = surface_points(prediction), surface_points(reference)
    forward, backward = directed_distances(p, r, axes), directed_distances(r, p, axes)
    pooled = np.concatenate([forward, backward])
    return {
        "hd_mm": float(max(forward.max(), backward.max())),
        "hd95_mm": max(linear_percentile(forward, 95.0), linear_percentile(backward, 95.0)),
        "pooled_hd95_mm": linear_percentile(pooled, 95.0),
        "assd_mm": float(pooled.sum() / len(pooled)),
        "masd_mm": float((forward.mean() + backward.mean()) / 2.0),
        "nsd": float((pooled <= tolerance_mm).sum() / len(pooled)),
    }


def overlap_metrics(prediction: Mask, reference: Mask) -> dict[str, float | None]:
    tp = fp = fn = tn = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        tp, fp, fn, tn = tp + (p and r), fp + (p and not r), fn + (r and not p), tn + (not p and not r)
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "specificity": tn / (tn + fp) if tn + fp else None,
    }


def components(mask: Mask) -> list[set[tuple[int, ...]]]:
    """26-connected components as sets of voxels, by flood fill."""
    left = {tuple(int(x) for x in voxel) for voxel in np.argwhere(mask)}
    found = []
    while left:
        stack, component = [left.pop()], set()
        while stack:
            voxel = stack.pop()
            component.add(voxel)
            for step in np.ndindex(3, 3, 3):
                neighbour = tuple(v + s - 1 for v, s in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
        found.append(component)
    return found


def lesion_f1(prediction: Mask, reference: Mask) -> float:
    predicted, real = components(prediction), components(reference)
    right = sum(any(prediction_part & real_part for real_part in real) for prediction_part in predicted)
    found = sum(any(prediction_part & real_part for prediction_part in predicted) for real_part in real)
    precision, recall = (right / len(predicted) if predicted else 0.0), (found / len(real) if real else 0.0)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
