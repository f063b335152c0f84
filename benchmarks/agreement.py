"""How well two label maps agree, for the benchmarks of ways to run a network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["agreement"]


def agreement(found: NDArray[np.integer[Any]], expected: NDArray[np.integer[Any]]) -> float | None:
    """Smallest Dice over the structures in either label map; None if both are empty, which proves nothing."""
    size = int(max(found.max(), expected.max())) + 1
    a, b = np.bincount(found.reshape(-1), minlength=size), np.bincount(expected.reshape(-1), minlength=size)
    both = np.bincount(expected[found == expected], minlength=size)
    total = a + b
    present = np.flatnonzero(total[1:]) + 1
    return float((2 * both[present] / total[present]).min()) if len(present) else None
