"""What kind of case is this: usual, or with noise, motion, thick slices, in a wrong crop …?

A linear head on the network's encoder: multinomial logistic regression on the means and spreads of its channels in the
box of the second look, and on plain statistics of the image. It tells a reader what may be wrong with a case that is
doubted; the verdict does not depend on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.files import write_json
from medseg.trust.stored import SMALLEST_SPREAD, numbers, read_stored

CASE_CLASS_NAME = "trust/case_class.json"
USUAL = "usual"
"""The class of cases as they came."""

_FORMAT = "medseg-case-class-1"
_FOLDS = 5
_STRENGTH = 0.01
"""Inverse of the penalty: features are many, cases some hundreds."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FaultClassifier:
    """A bundle's ``trust/case_class.json``.

    Parameters
    ----------
    classes
        Their names.
    mean, scale
        Per feature.
    weight
        Per class and scaled feature.
    bias
        Per class.
    recall
        By class: share that was recognised, in patients it was not fitted on.
    weights_sha256
        The weights whose encoder it reads.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    recall: Mapping[str, float]
    weights_sha256: str

    def __post_init__(self) -> None:
        n = len(self.mean)
        if (
            len(self.scale) != n
            or any(len(row) != n for row in self.weight)
            or not n
            or min(self.scale) < SMALLEST_SPREAD
        ):
            raise ValueError("the features of a case class do not fit together")
        if not len(self.classes) == len(self.weight) == len(self.bias) > 1:
            raise ValueError("the classes of a case class do not fit together")

    def probabilities(self, features: Floats) -> dict[str, float]:
        """Probability by class of one case; all the same if a feature is not finite."""
        scaled = (features - np.array(self.mean)) / np.array(self.scale)
        logits = np.array(self.weight) @ np.clip(np.nan_to_num(scaled), -10, 10) + np.array(self.bias)
        if not np.isfinite(features).all():
            logits = np.zeros(len(self.classes))
        share = np.exp(logits - logits.max())
        return dict(zip(self.classes, (share / share.sum()).tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write plain JSON, whole or not at all."""
        write_json(path, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str]) -> FaultClassifier:
        """Read one; nothing in it is executed.

        Raises
        ------
        BundleError
            If the file is something else or belongs to other weights.
        """
        return read_stored(path, "case class", _from_json, weights_sha256)


def _from_json(content: Mapping[str, Any]) -> FaultClassifier:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r}, expected {_FORMAT!r}")
    return FaultClassifier(
        tuple(map(str, content["classes"])),
        numbers(content["mean"]),
        numbers(content["scale"]),
        tuple(map(numbers, content["weight"])),
        numbers(content["bias"]),
        {str(name): float(value) for name, value in content["recall"].items()},
        str(content["weights_sha256"]),
    )


def fit_fault_classifier(
    features: Floats, classes: Sequence[str], patients: Sequence[str], weights_sha256: str
) -> FaultClassifier | None:
    """Fit the head; None if there are fewer than two classes of at least five patients each.

    Parameters
    ----------
    features
        ``(cases, features)`` of :attr:`medseg.trust.out_of_distribution.Reinference.description`.
    classes, patients
        Of each case. Classes with fewer patients are left out.
    weights_sha256
        Of the network.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = {name: {p for c, p in zip(classes, patients, strict=True) if c == name} for name in set(classes)}
    kept = [i for i, name in enumerate(classes) if len(known[name]) >= _FOLDS]
    chosen, names = features[kept], np.array([classes[i] for i in kept])
    if len(set(names.tolist())) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000))
    who = [patients[i] for i in kept]
    apart = cross_val_predict(model, chosen, names, groups=who, cv=GroupKFold(_FOLDS))
    scaler, head = model.fit(chosen, names)
    two = len(head.classes_) == 2  # scikit-learn keeps one row then
    weight = np.concatenate([-head.coef_, head.coef_]) / 2 if two else head.coef_
    bias = np.concatenate([-head.intercept_, head.intercept_]) / 2 if two else head.intercept_
    return FaultClassifier(
        tuple(map(str, head.classes_)),
        tuple(np.round(scaler.mean_, 6).tolist()),
        tuple(np.maximum(scaler.scale_, 1e-6).tolist()),
        tuple(tuple(np.round(row, 5).tolist()) for row in weight),
        tuple(np.round(bias, 5).tolist()),
        {str(name): round(float((apart[names == name] == name).mean()), 4) for name in head.classes_},
        weights_sha256,
    )
