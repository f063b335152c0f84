"""Which fault an image may have: none, or noise, motion, thick slices, a wrong crop …

Multinomial logistic regression on the network's encoder: on the means and spreads of its channels in the box of the
re-inference, and on plain statistics of the image. It tells a reader what may be wrong with a case that is not
accepted; the verdict does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medseg.json_shape import TEXT, Spec, number
from medseg.results.verdict import FaultKind
from medseg.trust.stored import SPREADS, STATISTICS, StoredPart

_FOLDS = 5
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
    embeddings: Floats, classes: Sequence[str], patients: Sequence[str], weights_sha256: str
) -> FaultClassifier | None:
    """Fit one on ``(cases, features)`` of :attr:`~medseg.trust.out_of_distribution.Reinference.embedding`.

    Classes of fewer than five patients are left out; None if less than two are left.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = {name: {p for c, p in zip(classes, patients, strict=True) if c == name} for name in set(classes)}
    kept = [i for i, name in enumerate(classes) if len(known[name]) >= _FOLDS]
    chosen, names = embeddings[kept], np.array([classes[i] for i in kept])
    if len(set(names.tolist())) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000))
    groups = [patients[i] for i in kept]
    predicted = cross_val_predict(model, chosen, names, groups=groups, cv=GroupKFold(_FOLDS))
    scaler, logistic = model.fit(chosen, names)
    weight, bias = logistic.coef_, logistic.intercept_
    if len(logistic.classes_) == 2:  # scikit-learn keeps one row then
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return FaultClassifier(
        tuple(map(str, logistic.classes_)),
        tuple(np.round(scaler.mean_, 6).tolist()),
        tuple(np.maximum(scaler.scale_, 1e-6).tolist()),
        tuple(tuple(np.round(row, 5).tolist()) for row in weight),
        tuple(np.round(bias, 5).tolist()),
        {str(name): round(float((predicted[names == name] == name).mean()), 4) for name in logistic.classes_},
        weights_sha256,
    )
