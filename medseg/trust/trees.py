"""Gradient boosted regression trees as plain numbers: fitted by scikit-learn, kept as JSON, evaluated by numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoostedTrees", "Tree", "fit_boosted_trees"]

Floats = NDArray[np.float64]

_TREES = 150
_DEPTH = 2
_LEARNING_RATE = 0.05
_SHARE_OF_CASES = 0.7
_FEWEST_IN_LEAF = 5


@dataclass(frozen=True)
class Tree:
    """One tree, node by node; node 0 is the root.

    Parameters
    ----------
    feature
        Which input a node asks; −1 for a leaf.
    threshold
        To the left if the input is at most this.
    left, right
        Node numbers of the children, larger than the node's own.
    value
        What a leaf answers.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(part) for part in (self.feature, self.threshold, self.left, self.right, self.value)}
        if len(sizes) != 1 or not self.feature:
            raise ValueError("a tree's lists differ in length or are empty")
        for node, feature in enumerate(self.feature):
            # Children come after their parent, so that walking down always ends.
            if feature >= 0 and not all(node < child[node] < len(self.feature) for child in (self.left, self.right)):
                raise ValueError("a tree's nodes do not lead downwards")

    def predict(self, inputs: Floats) -> Floats:
        """One answer per row; scikit-learn compares in single precision, and so does this."""
        rows, node = np.arange(len(inputs)), np.zeros(len(inputs), dtype=np.intp)
        single = inputs.astype(np.float32)
        feature, threshold = np.array(self.feature), np.array(self.threshold)
        left, right = np.array(self.left), np.array(self.right)
        while (inner := feature[node] >= 0).any():
            goes_left = single[rows, np.maximum(feature[node], 0)] <= threshold[node]
            node = np.where(inner, np.where(goes_left, left[node], right[node]), node)
        return np.array(self.value)[node]


@dataclass(frozen=True)
class BoostedTrees:
    """A constant plus the sum of trees, each scaled by the learning rate."""

    constant: float
    learning_rate: float
    trees: tuple[Tree, ...]

    def predict(self, inputs: Floats) -> Floats:
        """One answer per row of ``inputs`` (cases × scores)."""
        total = np.full(len(inputs), self.constant)
        for tree in self.trees:
            total += self.learning_rate * tree.predict(inputs)
        return total

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BoostedTrees:
        """From what :func:`dataclasses.asdict` and JSON made of one.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the content is something else.
        """
        trees = tuple(
            Tree(
                tuple(int(v) for v in tree["feature"]),
                tuple(float(v) for v in tree["threshold"]),
                tuple(int(v) for v in tree["left"]),
                tuple(int(v) for v in tree["right"]),
                tuple(float(v) for v in tree["value"]),
            )
            for tree in content["trees"]
        )
        return cls(float(content["constant"]), float(content["learning_rate"]), trees)


def fit_boosted_trees(inputs: Floats, target: Floats, seed: int = 0, weight: Floats | None = None) -> BoostedTrees:
    """Fit shallow trees (Friedman, Annals of Statistics 29:1189, 2001), small enough for some hundred cases."""
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(
        n_estimators=_TREES,
        max_depth=_DEPTH,
        learning_rate=_LEARNING_RATE,
        subsample=_SHARE_OF_CASES,
        min_samples_leaf=min(_FEWEST_IN_LEAF, max(1, len(target) // 4)),
        random_state=seed,
    ).fit(inputs, target, weight)
    trees = tuple(_plain(stage[0].tree_) for stage in model.estimators_)
    return BoostedTrees(float(np.ravel(model.init_.constant_)[0]), _LEARNING_RATE, trees)


def _plain(tree: Any) -> Tree:
    return Tree(
        tuple(int(feature) if feature >= 0 else -1 for feature in tree.feature),
        tuple(float(threshold) for threshold in tree.threshold),
        tuple(int(child) for child in tree.children_left),
        tuple(int(child) for child in tree.children_right),
        tuple(float(value) for value in tree.value[:, 0, 0]),
    )
