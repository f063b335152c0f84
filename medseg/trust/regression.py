"""A regressor as plain numbers: a straight line through the scores, and shallow trees for what it leaves over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.trust.trees import BoostedTrees, fit_boosted_trees

__all__ = ["Regressor", "fit_regressor"]

Floats = NDArray[np.float64]

_RIDGE = 1.0


@dataclass(frozen=True)
class Regressor:
    """``slope · clip(inputs) + trees(inputs)``.

    Parameters
    ----------
    low, high
        Range of every input that the line was fitted on; inputs are clipped to it, so that nothing is extrapolated.
    slope
        Per input.
    trees
        For the rest, the constant included.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    slope: tuple[float, ...]
    trees: BoostedTrees

    def __post_init__(self) -> None:
        if len({len(self.low), len(self.high), len(self.slope)}) != 1:
            raise ValueError("a regressor's lists differ in length")

    def predict(self, inputs: Floats) -> Floats:
        """One answer per row of ``inputs`` (cases × scores)."""
        clipped = np.clip(inputs, self.low, self.high)
        return np.asarray(clipped @ np.array(self.slope) + self.trees.predict(clipped))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Regressor:
        """From what :func:`dataclasses.asdict` and JSON made of one."""
        low, high, slope = (tuple(float(v) for v in content[name]) for name in ("low", "high", "slope"))
        return cls(low, high, slope, BoostedTrees.from_json(content["trees"]))


def fit_regressor(inputs: Floats, target: Floats, weight: Floats | None = None, seed: int = 0) -> Regressor:
    """Fit a ridge line, then boosted trees on what it leaves over.

    Parameters
    ----------
    inputs
        Cases × scores.
    target
        What is to be predicted, one per case.
    weight
        How much each case counts; all the same by default.
    seed
        Of the boosting.
    """
    weight = np.ones(len(target)) if weight is None else weight / weight.mean()
    low, high = inputs.min(axis=0), inputs.max(axis=0)
    mean = np.average(inputs, axis=0, weights=weight)
    scale = np.maximum(np.sqrt(np.average((inputs - mean) ** 2, axis=0, weights=weight)), 1e-6)
    scaled = (inputs - mean) / scale
    middle = float(np.average(target, weights=weight))
    square = (scaled * weight[:, None]).T @ scaled + _RIDGE * np.eye(inputs.shape[1])
    slope = np.linalg.solve(square, (scaled * weight[:, None]).T @ (target - middle)) / scale
    trees = fit_boosted_trees(inputs, target - inputs @ slope, seed, weight)
    return Regressor(tuple(low.tolist()), tuple(high.tolist()), tuple(slope.tolist()), trees)
