"""Which fault an image may have: none, or noise, motion, thick slices, a wrong crop …

Multinomial logistic regression on the network's encoder: on the means and spreads of its channels in the box of the
re-inference, and on plain statistics of the image. It tells a reader what may be wrong with a case that is not
accepted, and a calibration may rest on its probabilities, since what a feature is worth depends on the kind of fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medseg.json_shape import TEXT, Spec, number
from medseg.results.verdict import FaultKind
from medseg.trust.stored import SPREADS, STATISTICS, StoredPart

_FOLDS = 5
_FEATURE = "kind-"
_STRENGTH = 0.01
"""Inverse of the penalty: features are many, cases some hundreds."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FaultClassifier(StoredPart):
    """A bundle's ``trust/case_class.json``."""

    what = "fault classifier"
    file_format = "medseg-case-class-1"
    form: ClassVar[Spec] = {
        "classes!": [TEXT],
        "mean!": STATISTICS,
        "scale!": SPREADS,
        "weight!": [STATISTICS],
        "bias!": STATISTICS,
        "recall!": {"*": number(0.0, 1.0)},
        "weights_sha256!": TEXT,
    }

    classes: tuple[str, ...]  # names of the fault kinds; :data:`medseg.results.verdict.USUAL` is none
    mean: tuple[float, ...]
    scale: tuple[float, ...]  # mean and scale, per feature
    weight: tuple[tuple[float, ...], ...]  # per class and scaled feature
    bias: tuple[float, ...]  # per class
    recall: Mapping[str, float]  # by class: share that was recognised, in patients it was not fitted on
    weights_sha256: str  # the weights whose encoder it reads

    def __post_init__(self) -> None:
        n = len(self.mean)
        if n == 0 or len(self.scale) != n or any(len(row) != n for row in self.weight):
            raise ValueError("the features of a fault classifier do not fit together")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class of a fault classifier has the name of another")
        if not len(self.classes) == len(self.weight) == len(self.bias) > 1:
            raise ValueError("the classes of a fault classifier do not fit together")

    def probabilities(self, embedding: Floats) -> dict[str, float]:
        """Probability by fault kind of one case; all the same if a feature is not finite."""
        scaled = (embedding - np.array(self.mean)) / np.array(self.scale)
        logits = np.array(self.weight) @ np.clip(np.nan_to_num(scaled), -10, 10) + np.array(self.bias)
        if not np.isfinite(embedding).all():
            logits = np.zeros(len(self.classes))
        share = np.exp(logits - logits.max())
        return dict(zip(self.classes, (share / share.sum()).tolist(), strict=True))

    def features(self, embedding: Floats) -> dict[str, float]:
        """Its probabilities as features of one case: ``kind-NAME``."""
        return {f"{_FEATURE}{name}": share for name, share in self.probabilities(embedding).items()}

    @property
    def feature_names(self) -> frozenset[str]:
        """Names of the features that :meth:`features` gives."""
        return frozenset(f"{_FEATURE}{name}" for name in self.classes)

    def most_probable(self, embedding: Floats) -> FaultKind:
        """The most probable fault kind of one case."""
        return FaultKind(*max(self.probabilities(embedding).items(), key=lambda item: item[1]))

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FaultClassifier:
        """From what fits :attr:`form`."""
        return cls(
            tuple(content["classes"]),
            tuple(content["mean"]),
            tuple(content["scale"]),
            tuple(map(tuple, content["weight"])),
            tuple(content["bias"]),
            content["recall"],
            content["weights_sha256"],
        )


def fit_fault_classifier(
    embeddings: Floats, classes: Sequence[str | None], patients: Sequence[str], weights_sha256: str
) -> tuple[FaultClassifier, list[dict[str, float]]] | None:
    """Fit one on ``(cases, features)`` of :attr:`~medseg.trust.out_of_distribution.Reinference.embedding`.

    Also gives the :meth:`~FaultClassifier.features` of every case by a classifier that has not seen its patient, which
    is what a calibration may be fitted with. Cases whose class is None are not learnt from. Classes of fewer than five
    patients are left out; None if less than two are left, or less than two without one of five parts of the patients.
    """
    from sklearn.model_selection import GroupKFold

    known = {name: {p for c, p in zip(classes, patients, strict=True) if c == name} for name in set(classes) - {None}}
    names = np.array([name if name and len(known[name]) >= _FOLDS else "" for name in classes])
    kept = np.flatnonzero(names != "")
    if len(set(names[kept].tolist())) < 2:
        return None
    folds = GroupKFold(_FOLDS).split(embeddings, groups=patients)
    parts = [(np.intersect1d(others, kept), part) for others, part in folds]
    if any(len(set(names[others].tolist())) < 2 for others, _ in parts):
        return None
    found = _fitted(embeddings[kept], names[kept], weights_sha256)
    told: list[dict[str, float]] = [{}] * len(names)
    for others, part in parts:
        blind = _fitted(embeddings[others], names[others], weights_sha256)
        for i in part:  # a class whose patients are all in one part has no share there
            told[i] = dict.fromkeys(sorted(found.feature_names), 0.0) | blind.features(embeddings[i])
    right = np.array([max(told[i], key=told[i].__getitem__) == _FEATURE + names[i] for i in kept])
    recall = {name: round(float(right[names[kept] == name].mean()), 4) for name in found.classes}
    return replace(found, recall=recall), told


def _fitted(embeddings: Floats, names: NDArray[np.str_], weights_sha256: str) -> FaultClassifier:
    """A classifier of two classes or more, without its recall."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(embeddings)
    logistic = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000)
    logistic.fit(scaler.transform(embeddings), names)
    weight, bias = logistic.coef_, logistic.intercept_
    if len(logistic.classes_) == 2:  # scikit-learn keeps one row then
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return FaultClassifier(
        tuple(map(str, logistic.classes_)),
        tuple(np.round(scaler.mean_, 6).tolist()),
        tuple(np.maximum(scaler.scale_, 1e-6).tolist()),
        tuple(tuple(np.round(row, 5).tolist()) for row in weight),
        tuple(np.round(bias, 5).tolist()),
        {},
        weights_sha256,
    )
