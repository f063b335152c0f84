"""From scores without ground truth to a predicted Dice with a lower bound that holds as often as it says.

A regressor maps the scores of a case to the Dice of one structure. Its errors on patients it was not fitted on give the
bound: conformal prediction, one-sided, with errors scaled by their usual size (Lei et al., JASA 113:1094, 2018) and
every patient held out once (cross-conformal: Vovk, Annals of Mathematics and Artificial Intelligence 74:9, 2015). The
results of one patient are not independent: every patient counts once, however many results it has (hierarchical
conformal prediction: Dunn et al., JASA 118:2491, 2023). A poor regressor makes the bound low, not wrong. The bound
speaks of cases from the population that it was calibrated on; another hospital needs its own calibration.

A calibration is plain JSON: trees as lists of numbers, read and evaluated by this file alone. It names the SHA-256 of
the weights whose predictions it was fitted on, and is of no value for others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.files import write_json
from medseg.trust.features import used_for
from medseg.trust.gradient_boosting import BoostedTrees, fit_boosted_trees
from medseg.trust.stored import read_stored

FORMAT = "medseg-trust-calibration-3"

Floats = NDArray[np.float64]

_SMALLEST_ERROR = 0.005
"""Usual errors below this are taken as this, so that no bound rests on a handful of perfect cases."""


@dataclass(frozen=True)
class Estimate:
    """What is believed about one structure of one case: its Dice, and a bound that it exceeds as often as stated."""

    predicted_dice: float
    lower_bound: float


@dataclass(frozen=True)
class Thresholds:
    """When a result is accepted or rejected; everything between is to be reviewed.

    Parameters
    ----------
    accept
        Accepted if the lower bound of every structure reaches this.
    reject
        Rejected if the predicted Dice of any structure is below this.
    """

    accept: float = 0.8
    reject: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("accept", self.accept), ("reject", self.reject)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"the threshold {name} is {value!r}, expected a Dice from 0 to 1")

    def verdict(self, estimates: Sequence[Estimate]) -> str:
        """``"accept"``, ``"review"`` or ``"reject"``; without any estimate ``"review"``."""
        if any(estimate.predicted_dice < self.reject for estimate in estimates):
            return "reject"
        if estimates and all(estimate.lower_bound >= self.accept for estimate in estimates):
            return "accept"
        return "review"


@dataclass(frozen=True)
class StructureCalibration:
    """The calibration of one structure.

    Parameters
    ----------
    label, name
        The structure.
    scores
        Names of the scores that the regressor takes, in its order.
    regressor
        Scores → Dice.
    error_at, error
        Usual overestimate at some values of the predicted Dice (ascending); interpolated between.
    quantile
        Conformal quantile of the scaled errors; ``None`` if there were too few patients for the coverage.
    n_cases, n_patients
        What it was fitted on.
    """

    label: int
    name: str
    scores: tuple[str, ...]
    regressor: BoostedTrees
    error_at: tuple[float, ...]
    error: tuple[float, ...]
    quantile: float | None
    n_cases: int
    n_patients: int

    def __post_init__(self) -> None:
        if any(feature >= len(self.scores) for tree in self.regressor.trees for feature in tree.feature):
            raise ValueError("a tree asks for a score that is not there")
        if len(self.error_at) != len(self.error) or not self.error or list(self.error_at) != sorted(self.error_at):
            raise ValueError("the usual errors do not fit together")
        if self.quantile is not None and not float(self.quantile) >= 0:
            raise ValueError(f"the quantile is {self.quantile!r}, expected a number that is not negative")

    def estimate(self, scores: Floats) -> Estimate:
        """Predicted Dice and lower bound for one row of this structure's scores."""
        predicted = float(np.clip(self.regressor.predict(scores[None])[0], 0.0, 1.0))
        if self.quantile is None:
            return Estimate(predicted, 0.0)
        size = float(np.interp(predicted, self.error_at, self.error))
        return Estimate(predicted, float(np.clip(predicted - self.quantile * size, 0.0, 1.0)))


@dataclass(frozen=True)
class Calibration:
    """Everything a bundle's ``trust/calibration.json`` says.

    Parameters
    ----------
    scores
        Names of the scores, in the order of the regressors' inputs.
    coverage
        Share of cases whose Dice lies above the lower bound.
    weights_sha256
        SHA-256 of the weights that made the predictions.
    thresholds
        When to accept, review or reject.
    structures
        One calibration per structure.
    provenance
        Whose predictions it was fitted on, if not those of the weights themselves.
    """

    scores: tuple[str, ...]
    coverage: float
    weights_sha256: str
    thresholds: Thresholds
    structures: tuple[StructureCalibration, ...]
    provenance: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"the coverage is {self.coverage!r}, expected a share of the cases")
        if not all(set(structure.scores) <= set(self.scores) for structure in self.structures):
            raise ValueError("a structure rests on scores that the calibration does not name")

    def estimate(self, scores: Mapping[str, float]) -> dict[int, Estimate]:
        """Estimates by label for the scores of one case.

        Raises
        ------
        UsageError
            If a score is missing. A score that is not finite is taken as a sign of failure: the estimate is 0.
        """
        missing = [name for name in self.scores if name not in scores]
        if missing:
            raise UsageError(f"the scores {', '.join(missing)} are missing; the calibration was fitted with them")
        found = {}
        for structure in self.structures:
            row = np.array([scores[name] for name in structure.scores], dtype=np.float64)
            found[structure.label] = structure.estimate(row) if np.isfinite(row).all() else Estimate(0.0, 0.0)
        return found

    def verdict(self, estimates: Mapping[int, Estimate]) -> str:
        """``"accept"``, ``"review"`` or ``"reject"`` by the stated thresholds."""
        return self.thresholds.verdict(list(estimates.values()))

    def write(self, path: Path) -> None:
        """Write plain JSON, whole or not at all."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str] | None = None) -> Calibration:
        """Read a calibration; nothing in it is executed.

        Parameters
        ----------
        path
            The JSON file.
        weights_sha256
            SHA-256 of the weights in use, one per file that holds them; ``None`` checks nothing.

        Raises
        ------
        BundleError
            If the file is no calibration, or belongs to other weights.
        """
        return read_stored(path, "trust calibration", _from_json, weights_sha256)


def _from_json(content: Mapping[str, Any]) -> Calibration:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
    structures = []
    for item in content["structures"]:
        known = {field.name: item[field.name] for field in fields(StructureCalibration)}
        known.update(
            scores=tuple(map(str, item["scores"])),
            regressor=BoostedTrees.from_json(item["regressor"]),
            error_at=tuple(float(v) for v in item["error_at"]),
            error=tuple(float(v) for v in item["error"]),
        )
        structures.append(StructureCalibration(**known))
    return Calibration(
        tuple(map(str, content["scores"])),
        float(content["coverage"]),
        str(content["weights_sha256"]),
        Thresholds(**content["thresholds"]),
        tuple(structures),
        str(content.get("provenance", "")),
    )


@dataclass(frozen=True)
class FitOptions:
    """How a calibration is fitted.

    Parameters
    ----------
    coverage
        Wanted probability that the Dice lies above the lower bound.
    folds
        Folds over patients that keep a case's error apart from the fit that predicted it.
    seed
        Seed of the folds and of the boosting.
    thresholds
        Stated in the calibration.
    """

    coverage: float = 0.9
    folds: int = 5
    seed: int = 0
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        if not 0.5 <= self.coverage < 1.0 or self.folds < 2:
            raise UsageError(f"coverage {self.coverage} and {self.folds} folds; give 0.5 to 1 and at least 2")


def fit_calibration(
    scores: Mapping[str, Sequence[float]],
    dice: Mapping[int, Sequence[float | None]],
    names: Mapping[int, str],
    patients: Sequence[str],
    weights_sha256: str,
    options: FitOptions | None = None,
    importance: Sequence[float] | None = None,
) -> Calibration:
    """Fit on cases with ground truth that the network was not trained on.

    Parameters
    ----------
    scores
        Name → one value per case. A name that ends in ``[label]`` is used for that structure alone.
    dice
        Label → Dice of each case, 0 for a missed or invented structure, ``None`` where neither mask has it.
    names
        Label → name.
    patients
        The patient of each case; a patient is never on both sides of a fold.
    weights_sha256
        SHA-256 of the weights that made the predictions.
    options
        Coverage, folds, seed and thresholds.
    importance
        How much each case counts beside the others of its patient; all the same by default.

    Raises
    ------
    UsageError
        If lengths differ, a score is not finite, or a structure has fewer patients than folds.
    """
    options = options or FitOptions()
    matrix = np.array(list(scores.values()), dtype=np.float64).reshape(len(scores), -1).T
    weight = np.ones(len(matrix)) if importance is None else np.asarray(importance, dtype=np.float64)
    lengths = {len(matrix), len(patients), len(weight), *(len(column) for column in dice.values())}
    if not np.isfinite(matrix).all() or len(lengths) != 1:
        raise UsageError("scores, Dice and patients differ in length or a score is not finite; give one each per case")
    structures = []
    for label, column in dice.items():
        target = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
        known = np.isfinite(target)
        used = used_for(label, tuple(scores))
        inputs = matrix[known][:, [list(scores).index(name) for name in used]]
        cases = _Cases(inputs, target[known], np.asarray(patients)[known], weight[known])
        structures.append(_fit_structure((label, names[label], used), cases, options))
    return Calibration(tuple(scores), options.coverage, weights_sha256, options.thresholds, tuple(structures))


class _Cases(NamedTuple):
    """Cases with a known Dice of one structure."""

    scores: Floats
    dice: Floats
    patients: NDArray[Any]
    weight: Floats


def _fit_structure(what: tuple[int, str, tuple[str, ...]], cases: _Cases, options: FitOptions) -> StructureCalibration:
    label, name, used = what
    _, index = np.unique(cases.patients, return_inverse=True)
    n_patients = int(index.max()) + 1 if len(index) else 0
    if n_patients < options.folds:
        raise UsageError(f"{name} has {n_patients} patients; calibrating with {options.folds} folds needs as many")
    # every patient counts once, whatever the number of its results
    share = cases.weight / np.bincount(index, cases.weight)[index]
    fold = (np.random.default_rng(options.seed).permutation(n_patients) % options.folds)[index]
    apart = np.empty(len(cases.dice))
    for number in range(options.folds):
        out = fold == number
        regressor = fit_boosted_trees(cases.scores[~out], cases.dice[~out], options.seed, share[~out])
        apart[out] = np.clip(regressor.predict(cases.scores[out]), 0.0, 1.0)
    error_at, error = _usual_error(apart, apart - cases.dice, options.coverage)
    scaled = (apart - cases.dice) / np.interp(apart, error_at, error)
    return StructureCalibration(
        label=label,
        name=name,
        scores=used,
        regressor=fit_boosted_trees(cases.scores, cases.dice, options.seed, share),
        error_at=tuple(error_at.tolist()),
        error=tuple(error.tolist()),
        quantile=conformal_quantile(scaled, options.coverage, share / (n_patients + 1)),
        n_cases=len(cases.dice),
        n_patients=n_patients,
    )


def conformal_quantile(errors: Floats, coverage: float, mass: Floats | None = None) -> float | None:
    """The smallest error that carries ``coverage``; ``None`` if there is too little for any bound to hold that often.

    Parameters
    ----------
    errors
        One per case.
    coverage
        Wanted share.
    mass
        Of each error; what is missing to 1 lies at infinity. By default 1/(n+1) each.
    """
    mass = np.full(len(errors), 1.0 / (len(errors) + 1)) if mass is None else mass
    order = np.argsort(errors, kind="stable")
    reached = np.flatnonzero(np.cumsum(mass[order]) >= coverage - 1e-9)
    return float(errors[order][reached[0]]) if len(reached) else None


def _usual_error(predicted: Floats, error: Floats, coverage: float) -> tuple[Floats, Floats]:
    """By how much Dice was overestimated at most in the wanted share of cases, in bins of the predicted Dice.

    Bins hold equally many cases. Predictions of good results err little and those of poor ones a lot; a bound that
    held on average alone would hold for the good ones always and for the poor ones too rarely.
    """
    n_bins = int(np.clip(len(predicted) // 40, 1, 10))
    parts = np.array_split(np.argsort(predicted, kind="stable"), n_bins)
    at = np.array([predicted[part].mean() for part in parts])
    size = np.maximum([np.quantile(error[part], coverage) for part in parts], _SMALLEST_ERROR)
    return at, np.asarray(size, dtype=np.float64)
