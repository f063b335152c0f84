"""Gradient boosted regression trees as plain numbers: fitted by scikit-learn, kept as JSON, evaluated by numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.json_shape import Spec, number, numbers, wholes

Floats = NDArray[np.float64]

_LEARNING_RATE = 0.08
_SEEDS = 3
"""Fits that are averaged: each draws other cases and features, and errs elsewhere."""
_MOST_NODES = 1_000_000
"""Of all trees together, each as large as the largest: 600 trees of 31 nodes are usual."""
TREES: Spec = {
    "constant!": number(0.0, 1.0),
    "learning_rate!": number(0.0, 1.0),
    "trees!": [
        {
            "feature!": wholes(-1),
            "threshold!": numbers(-1e12, 1e12),
            "left!": wholes(-1),
            "right!": wholes(-1),
            "value!": numbers(-10.0, 10.0),
        }
    ],
}
"""Trees as JSON, for a target from 0 to 1."""
_LISTS: dict[str, Any] = {"feature": int, "threshold": float, "left": int, "right": int, "value": float}
"""The lists of a tree, and what they hold."""


@dataclass(frozen=True)
class Tree:
    """One tree, node by node; node 0 is the root."""

    feature: tuple[int, ...]  # which input a node asks; −1 for a leaf
    threshold: tuple[float, ...]  # to the left if the input is at most this
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]  # what a leaf answers

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, name)) for name in _LISTS}
        if len(sizes) != 1 or not self.feature:
            raise ValueError("a tree's lists differ in length or are empty")
        for node, feature in enumerate(self.feature):
            # children come after their parent, so that walking down always ends
            if feature >= 0 and not all(node < child[node] < len(self.feature) for child in (self.left, self.right)):
                raise ValueError("a tree's nodes do not lead downwards")


@dataclass(frozen=True)
class BoostedTrees:
    """A constant plus the sum of trees, each scaled by the learning rate."""

    constant: float
    learning_rate: float
    trees: tuple[Tree, ...]

    def __post_init__(self) -> None:
        most = max((len(tree.feature) for tree in self.trees), default=0)
        if len(self.trees) * most > _MOST_NODES:
            raise ValueError(f"found {len(self.trees)} trees of up to {most} nodes, expected {_MOST_NODES} at most")

    @property
    def range(self) -> tuple[float, float]:
        """Limits between which every answer lies: the least and the greatest leaf of each tree, added up."""
        leaves = [
            [value for value, feature in zip(tree.value, tree.feature, strict=True) if feature < 0]
            for tree in self.trees
        ]
        low, high = (sum(map(end, leaves)) for end in (min, max))
        return self.constant + self.learning_rate * low, self.constant + self.learning_rate * high

    def predict(self, inputs: Floats) -> Floats:
        """One answer per row of ``inputs`` (cases × features), compared in single precision as in scikit-learn."""
        feature, threshold, left, right, value = self._nodes
        tree, case = np.arange(len(feature)), np.arange(len(inputs))[:, None]
        single, node = inputs.astype(np.float32), np.zeros((len(inputs), len(feature)), dtype=np.intp)
        while (inner := feature[tree, node] >= 0).any():  # all trees go down a step at a time
            goes_left = single[case, np.maximum(feature[tree, node], 0)] <= threshold[tree, node]
            child = np.where(goes_left, left[tree, node], right[tree, node])
            node = np.where(inner, child, node)
        return np.asarray(self.constant + self.learning_rate * value[tree, node].sum(axis=1))

    @cached_property
    def _nodes(self) -> tuple[NDArray[Any], ...]:
        """Feature, threshold, left, right and value, each ``(trees, nodes)``; what a tree lacks is never reached."""
        most = max((len(tree.feature) for tree in self.trees), default=1)
        parts = []
        for name, kind in _LISTS.items():
            parts.append(np.full((len(self.trees), most), -1, dtype=np.intp if kind is int else float))
            for row, tree in zip(parts[-1], self.trees, strict=True):
                row[: len(tree.feature)] = getattr(tree, name)
        return tuple(parts)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BoostedTrees:
        """From what fits :data:`TREES`; ``ValueError`` if a walk down would not end."""
        trees = tuple(
            Tree(**{name: tuple(map(kind, tree[name])) for name, kind in _LISTS.items()}) for tree in content["trees"]
        )
        return cls(float(content["constant"]), float(content["learning_rate"]), trees)


def fit_boosted_trees(inputs: Floats, target: Floats, weight: Floats | None = None) -> BoostedTrees:
    """Fit shallow trees (Friedman, Annals of Statistics 29:1189, 2001) to cases × features, one target per case.

    ``weight`` says how much each case counts; all the same by default. The answer is the mean of fits with other seeds.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    models = [
        GradientBoostingRegressor(
            loss="huber",  # a case that everything speaks well of and that failed must not bend the rest
            n_estimators=200,
            max_depth=4,
            learning_rate=_LEARNING_RATE,
            subsample=0.5,
            max_features=0.3,
            min_samples_leaf=min(5, max(1, len(target) // 4)),
            random_state=seed,
        ).fit(inputs, target, weight)
        for seed in range(_SEEDS)
    ]
    trees = tuple(_plain(stage[0].tree_) for model in models for stage in model.estimators_)
    constant = float(np.ravel(models[0].init_.constant_)[0])  # a quantile of the target, which no seed changes
    return BoostedTrees(constant, _LEARNING_RATE / _SEEDS, trees)


def _plain(tree: Any) -> Tree:
    """Lists of numbers; what a leaf answers is rounded to six places, and what only the others need is left out."""
    inner = [int(feature) >= 0 for feature in tree.feature]
    return Tree(
        tuple(int(feature) if has else -1 for feature, has in zip(tree.feature, inner, strict=True)),
        tuple(float(threshold) if has else 0.0 for threshold, has in zip(tree.threshold, inner, strict=True)),
        tuple(int(child) for child in tree.children_left),
        tuple(int(child) for child in tree.children_right),
        tuple(0.0 if has else round(float(value), 6) for value, has in zip(tree.value[:, 0, 0], inner, strict=True)),
    )
