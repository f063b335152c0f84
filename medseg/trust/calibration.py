"""From features without ground truth to a predicted Dice with a lower bound that holds as often as it says.

A regressor maps the features of a case to the Dice of one structure. Its errors on patients it was not fitted on give
the bound: conformal prediction, one-sided, with errors scaled by their usual size (Lei et al., JASA 113:1094, 2018) and
every patient held out once (cross-conformal: Vovk, Annals of Mathematics and Artificial Intelligence 74:9, 2015). The
results of one patient are not independent: every patient counts once, however many results it has (hierarchical
conformal prediction: Dunn et al., JASA 118:2491, 2023). A poor regressor makes the bound low, not wrong. The bound
speaks of cases from the population that it was calibrated on; another hospital needs its own calibration.

A calibration is plain JSON: trees as lists of numbers, read and evaluated by this package alone. It names the SHA-256
of the weights whose predictions it was fitted on and the cleaning of their labels, and is of no value for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.json_shape import TEXT, Spec, number, numbers, whole
from medseg.labels.scheme import LARGEST_LABEL
from medseg.results.verdict import StructureQuality, Thresholds
from medseg.trust.gradient_boosting import TREES, BoostedTrees, fit_boosted_trees
from medseg.trust.stored import StoredPart

_SMALLEST_ERROR = 0.005
"""Usual errors below this are taken as this, so that no bound rests on a handful of perfect cases."""

Floats = NDArray[np.float64]


def features_for(label: int, names: Sequence[str]) -> tuple[str, ...]:
    """Which of the features tell about one structure: its own, and those of the whole case."""
    return tuple(name for name in names if not name.endswith("]") or name.endswith(f"[{label}]"))


@dataclass(frozen=True)
class StructureCalibration:
    """The calibration of one structure."""

    label: int
    name: str
    features: tuple[str, ...]  # names of the features that the regressor takes, in its order
    regressor: BoostedTrees  # features → Dice
    error_at: tuple[float, ...]
    error: tuple[float, ...]
    """Usual overestimate at some values of the predicted Dice (ascending); interpolated between."""
    quantile: float | None
    """Conformal quantile of the scaled errors; ``None`` if there were too few patients for the coverage."""
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

    def estimate(self, features: Mapping[str, float]) -> StructureQuality:
        """Predicted Dice and lower bound; 0 if a feature is not finite."""
        row = np.array([features[name] for name in self.features], dtype=np.float64)
        if not np.isfinite(row).all():
            return StructureQuality(self.label, self.name, 0.0, 0.0)
        return self.quality(float(self.regressor.predict(row[None])[0]))

    def quality(self, predicted: float) -> StructureQuality:
        """What is said of a result whose Dice the regressor predicts as this."""
        predicted, lower_bound = float(np.clip(predicted, 0.0, 1.0)), 0.0
        if self.quantile is not None:
            size = float(np.interp(predicted, self.error_at, self.error))
            lower_bound = float(np.clip(predicted - self.quantile * size, 0.0, 1.0))
        return StructureQuality(self.label, self.name, predicted, lower_bound)

    def facts(self) -> dict[str, Any]:
        """What it is of, and what it was fitted on."""
        return {"label": self.label, "name": self.name, "n_cases": self.n_cases, "n_patients": self.n_patients}


_STRUCTURE: Spec = {
    "label!": whole(1, LARGEST_LABEL),
    "name!": TEXT,
    "scores!": [TEXT],
    "regressor!": TREES,
    "error_at!": numbers(0.0, 1.0),
    "error!": numbers(0.0, 1.0),
    "quantile": number(0.0, 1e6),
    "n_cases!": whole(1),
    "n_patients!": whole(1),
}


@dataclass(frozen=True)
class Calibration(StoredPart):
    """Everything a bundle's ``trust/calibration.json`` says."""

    what = "trust calibration"
    file_format = "medseg-trust-calibration-3"
    form: ClassVar[Spec] = {
        "scores!": [TEXT],
        "coverage!": number(0.0, 1.0),
        "weights_sha256!": TEXT,
        "thresholds!": {"accept!": number(0.0, 1.0), "reject!": number(0.0, 1.0)},
        "structures!": [_STRUCTURE],
        "provenance": TEXT,
        "cleaning": [TEXT],
    }

    features: tuple[str, ...]  # names of the features that it was fitted with
    coverage: float  # share of cases whose Dice lies above the lower bound
    weights_sha256: str  # SHA-256 of the weights that made the predictions
    thresholds: Thresholds  # when to accept, review or reject
    structures: tuple[StructureCalibration, ...]  # one calibration per structure
    provenance: str = ""  # whose predictions it was fitted on, if not those of the weights themselves
    cleaning: tuple[str, ...] = ()  # what was done to the labels of these predictions at the end, step by step

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"the coverage is {self.coverage!r}, expected a share of the cases")
        labels = [structure.label for structure in self.structures]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"its structures are {labels[:20]}, expected each label once")
        if not all(set(structure.features) <= set(self.features) for structure in self.structures):
            raise ValueError("a structure rests on features that the calibration does not name")

    def estimate(self, features: Mapping[str, float]) -> tuple[StructureQuality, ...]:
        """How good each structure of one case is expected to be. Raises ``UsageError`` if a feature is missing."""
        if missing := [name for name in self.features if name not in features]:
            raise UsageError(f"the features {', '.join(missing)} are missing; the calibration was fitted with them")
        return tuple(structure.estimate(features) for structure in self.structures)

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        structures = [
            {"scores" if key == "features" else key: value for key, value in asdict(structure).items()}
            for structure in self.structures
        ]
        return {
            "scores": list(self.features),
            "coverage": self.coverage,
            "weights_sha256": self.weights_sha256,
            "thresholds": asdict(self.thresholds),
            "structures": structures,
            "provenance": self.provenance,
            "cleaning": list(self.cleaning),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """From what fits :attr:`form`."""
        structures = [
            StructureCalibration(
                item["label"],
                item["name"],
                tuple(item["scores"]),
                BoostedTrees.from_json(item["regressor"]),
                tuple(item["error_at"]),
                tuple(item["error"]),
                item.get("quantile"),
                item["n_cases"],
                item["n_patients"],
            )
            for item in content["structures"]
        ]
        return cls(
            tuple(content["scores"]),
            content["coverage"],
            content["weights_sha256"],
            Thresholds(*(content["thresholds"][name] for name in ("accept", "reject"))),
            tuple(structures),
            content.get("provenance") or "",
            tuple(content.get("cleaning") or ()),
        )


@dataclass(frozen=True)
class FitOptions:
    """How a calibration is fitted."""

    coverage: float = 0.9  # probability that the Dice lies above the lower bound
    folds: int = 5  # over patients; they keep a case's error apart from the fit that predicted it
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if not 0.5 <= self.coverage < 1.0 or self.folds < 2:
            raise UsageError(f"coverage {self.coverage} and {self.folds} folds; give 0.5 to 1 and at least 2")


def fit_calibration(
    features: Mapping[str, Sequence[float]],
    dice: Mapping[int, Sequence[float | None]],
    names: Mapping[int, str],
    patients: Sequence[str],
    weights_sha256: str,
    options: FitOptions | None = None,
    weights: Sequence[float] | None = None,
) -> Calibration:
    """Fit on cases with ground truth that the network was not trained on.

    Parameters
    ----------
    features
        Name → one value per case. A name that ends in ``[label]`` is used for that structure alone.
    dice
        Label → Dice of each case, 0 for a missing structure or a false one, ``None`` where neither mask has it.
    names
        Label → name.
    patients
        The patient of each case; a patient is never on both sides of a fold.
    weights_sha256
        SHA-256 of the weights that made the predictions.
    options
        Coverage, folds and thresholds.
    weights
        How much each case counts beside the others of its patient; all the same by default.

    Raises
    ------
    UsageError
        If lengths differ, a feature is not finite, or a structure has fewer patients than folds.
    """
    options = options or FitOptions()
    matrix = np.array(list(features.values()), dtype=np.float64).reshape(len(features), -1).T
    weight = np.ones(len(matrix)) if weights is None else np.asarray(weights, dtype=np.float64)
    lengths = {len(matrix), len(patients), len(weight), *(len(column) for column in dice.values())}
    if not np.isfinite(matrix).all() or len(lengths) != 1:
        raise UsageError("features, Dice and patients differ in length or a feature is not finite; give one per case")
    structures = []
    for label, column in dice.items():
        target = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
        known = np.isfinite(target)
        used = features_for(label, tuple(features))
        inputs = matrix[known][:, [list(features).index(name) for name in used]]
        cases = inputs, target[known], np.asarray(patients)[known], weight[known]
        structures.append(_fit_structure(label, names[label], used, *cases, options))
    return Calibration(tuple(features), options.coverage, weights_sha256, options.thresholds, tuple(structures))


def _fit_structure(
    label: int,
    name: str,
    used: tuple[str, ...],
    features: Floats,
    dice: Floats,
    patients: NDArray[Any],
    weight: Floats,
    options: FitOptions,
) -> StructureCalibration:
    _, index = np.unique(patients, return_inverse=True)
    n_patients = int(index.max()) + 1 if len(index) else 0
    if n_patients < options.folds:
        raise UsageError(f"{name} has {n_patients} patients; calibrating with {options.folds} folds needs as many")
    # every patient counts once, whatever the number of its results
    share = weight / np.bincount(index, weight)[index]
    fold = (np.random.default_rng(0).permutation(n_patients) % options.folds)[index]
    predicted = np.empty(len(dice))
    for part in range(options.folds):
        out = fold == part
        regressor = fit_boosted_trees(features[~out], dice[~out], share[~out])
        predicted[out] = np.clip(regressor.predict(features[out]), 0.0, 1.0)
    error_at, error = usual_error(predicted, predicted - dice, options.coverage)
    scaled = (predicted - dice) / np.interp(predicted, error_at, error)
    quantile = conformal_quantile(scaled, options.coverage, share / (n_patients + 1))
    regressor = fit_boosted_trees(features, dice, share)
    usual = tuple(error_at.tolist()), tuple(error.tolist())
    return StructureCalibration(label, name, used, regressor, *usual, quantile, len(dice), n_patients)


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
