"""Where each label lies, found without looking at every voxel one by one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "find_boxes"]

Box = tuple[slice, slice, slice]


def find_boxes(label_map: NDArray[np.integer]) -> dict[int, Box]:
    """A box around every label but 0.

    Volumes are mostly background: eight bytes of it are recognised at once, and only the remaining words are looked
    at in detail. The boxes are therefore right to a machine word: up to seven voxels larger than needed along the
    last axis, and over its whole length where a word runs on into the next row.

    Parameters
    ----------
    label_map
        C-contiguous integers, axes (i, j, k).
    """
    words, values = _occupied_words(label_map)
    if not len(words):
        return {}
    lanes = values.shape[1]
    n_j, n_k = label_map.shape[1:]
    first = words * lanes
    last = np.minimum(first + lanes, label_map.size) - 1
    low_row, high_row = first // n_k, last // n_k
    same_row = low_row == high_row
    lows = [low_row // n_j, low_row % n_j, np.where(same_row, first - low_row * n_k, 0)]
    highs = [high_row // n_j, high_row % n_j, np.where(same_row, last - high_row * n_k, n_k - 1)]
    same_plane = lows[0] == highs[0]
    lows[1], highs[1] = np.where(same_plane, lows[1], 0), np.where(same_plane, highs[1], n_j - 1)
    boxes = {}
    for label in _values_in(values):
        # One comparison per word instead of a reduction over its lanes.
        here = np.flatnonzero((values == label).view(f"u{lanes}"))
        i, j, k = (
            slice(int(low[here].min()), int(high[here].max()) + 1) for low, high in zip(lows, highs, strict=True)
        )
        boxes[label] = (i, j, k)
    return boxes


def _occupied_words(label_map: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.integer]]:
    """Indices of the eight-byte words that are not all background, and their values (words × voxels in a word)."""
    flat = label_map.ravel()
    lanes = 8 // flat.itemsize
    n_words = flat.size // lanes
    whole = flat[: n_words * lanes]
    words = np.flatnonzero(whole.view(np.uint64))
    values = whole.reshape(-1, lanes)[words]
    rest = flat[n_words * lanes :]
    if rest.any():
        tail = np.zeros((1, lanes), dtype=flat.dtype)
        tail[0, : len(rest)] = rest
        words, values = np.append(words, n_words), np.concatenate([values, tail])
    return words, values


def _values_in(values: NDArray[np.integer]) -> list[int]:
    """The distinct values but 0, ascending."""
    if values.dtype.itemsize <= 2:
        seen = np.zeros(int(values.max()) + 1, dtype=bool)
        seen[values] = True
        return [int(value) for value in np.flatnonzero(seen) if value]
    return [int(value) for value in np.unique(values) if value]
