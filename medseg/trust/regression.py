"""What the estimates of Dice and of volumes rest on: a regressor for each structure, and how far it errs on others.

Every patient is held out once and counts once, however many results it has. Errors are scaled by their usual size at
such a prediction, and a quantile of them, with one patient more whose error is infinite, is what a bound rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.trust.gradient_boosting import BoostedTrees, Floats

Fit = Callable[[Floats, Floats, Floats], BoostedTrees]

_SMALLEST_ERROR = 0.005
"""Usual errors below this are taken as this, so that no bound rests on a handful of perfect cases."""


def features_for(label: int, names: Sequence[str]) -> tuple[str, ...]:
    """Which of the features tell about one structure: its own, and those of the whole case."""
    return tuple(name for name in names if not name.endswith("]") or name.endswith(f"[{label}]"))


@dataclass(frozen=True)
class StructureRegressor:
    """From the features of a case to one number of one structure, and how far that usually errs."""

    label: int
    name: str
    features: tuple[str, ...]  # names of what the regressor takes, in its order; without any it is a constant
    regressor: BoostedTrees
    error_at: tuple[float, ...]
    error: tuple[float, ...]
    """Usual error at some predicted numbers, or sizes of them (ascending); interpolated between."""
    quantile: float | None  # conformal, of the errors over the usual ones; None: too few patients for the coverage
    n_cases: int
    n_patients: int  # n_cases and n_patients: what it was fitted on

    def __post_init__(self) -> None:
        if any(feature >= len(self.features) for tree in self.regressor.trees for feature in tree.feature):
            raise ValueError("a tree asks for a feature that is not there")
        if len(self.error_at) != len(self.error) or not self.error or list(self.error_at) != sorted(self.error_at):
            raise ValueError("the usual errors do not fit together")
        if not set(self.features) <= set(features_for(self.label, self.features)):
            raise ValueError(f"the structure {self.label} rests on features of another one")
        if self.n_patients > self.n_cases:
            raise ValueError(f"{self.n_cases} cases of {self.n_patients} patients were fitted on, which cannot be")

    @staticmethod
    def fields_in(content: Mapping[str, Any]) -> dict[str, Any]:
        """Of a structure in a file, what this record knows of it."""
        known = {one.name: content.get(one.name) for one in fields(StructureRegressor)}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return {**known, **lists, "regressor": BoostedTrees.from_json(content["regressor"])}

    def predict(self, features: Mapping[str, float]) -> float | None:
        """Of one case; None if a feature is not finite."""
        row = np.array([[features[name] for name in self.features]], dtype=np.float64)
        return float(self.regressor.predict(row)[0]) if np.isfinite(row).all() else None


def shares(patients: NDArray[Any], weight: Floats) -> tuple[Floats, int]:
    """How much each result counts, so that every patient counts once; and how many patients there are."""
    known, index = np.unique(patients, return_inverse=True)
    return weight / np.bincount(index, weight)[index], len(known)


def fold_of(patients: Sequence[str] | NDArray[Any], folds: int) -> NDArray[np.int64]:
    """Which part of the patients each case belongs to."""
    known, index = np.unique(np.asarray(patients), return_inverse=True)
    if len(known) < folds:
        raise UsageError(f"found {len(known)} patients, expected at least {folds}; give more cases")
    return np.asarray((np.random.default_rng(0).permutation(len(known)) % folds)[index], dtype=np.int64)


def fit_apart(
    inputs: Floats, target: Floats, patients: NDArray[Any], weight: Floats, folds: int, fit: Fit
) -> tuple[BoostedTrees, Floats]:
    """A regressor of all cases (``inputs`` are cases × features), and what one without its patient says of each."""
    (share, _), fold, told = shares(patients, weight), fold_of(patients, folds), np.empty(len(target))
    for part in np.unique(fold):
        out = fold == part
        told[out] = fit(inputs[~out], target[~out], share[~out]).predict(inputs[out])
    return fit(inputs, target, share), told


def patient_quantile(
    errors: Floats, patients: NDArray[Any], weight: Floats, coverage: float, least: float = 0.0
) -> float | None:
    """:func:`conformal_quantile` for a result of another patient, or ``least`` if it is below."""
    share, n_patients = shares(patients, weight)
    quantile = conformal_quantile(errors, coverage, share / (n_patients + 1))
    return None if quantile is None else max(quantile, least)


def conformal_quantile(errors: Floats, coverage: float, mass: Floats | None = None) -> float | None:
    """The smallest error that carries ``coverage``; ``None`` if there is too little for any bound to hold that often.

    ``mass`` is that of each error, by default 1/(n+1); what is missing to 1 lies at infinity.
    """
    mass = np.full(len(errors), 1.0 / (len(errors) + 1)) if mass is None else mass
    order = np.argsort(errors, kind="stable")
    reached = np.flatnonzero(np.cumsum(mass[order]) >= coverage - 1e-9)
    return float(errors[order][reached[0]]) if len(reached) else None


def usual_error(predicted: Floats, error: Floats, coverage: float) -> tuple[Floats, Floats]:
    """By how much Dice was overestimated at most in the wanted share of cases, in bins of the predicted Dice.

    Bins hold equally many cases. Predictions of good results err little and those of poor ones a lot; a bound that
    held on average alone would hold for the good ones always and for the poor ones too rarely.
    """
    n_bins = int(np.clip(len(predicted) // 40, 1, 10))
    parts = np.array_split(np.argsort(predicted, kind="stable"), n_bins)
    at = np.array([predicted[part].mean() for part in parts])
    size = np.maximum([np.quantile(error[part], coverage) for part in parts], _SMALLEST_ERROR)
    return at, np.asarray(size, dtype=np.float64)
