"""From features without ground truth to a predicted Dice with a lower bound that holds as often as it says.

A regressor maps the features of a case to the Dice of one structure. Its errors on patients it was not fitted on give
the bound: conformal prediction, one-sided, with errors scaled by their usual size (Lei et al., JASA 113:1094, 2018) and
every patient held out once (cross-conformal: Vovk, Annals of Mathematics and Artificial Intelligence 74:9, 2015). The
results of one patient are not independent: every patient counts once, however many results it has (hierarchical
conformal prediction: Dunn et al., JASA 118:2491, 2023; Lee et al., arXiv 2306.06342, for the quantile over patients). A
poor regressor makes the bound low, not wrong. The bound speaks of cases from the population that it was calibrated on;
another hospital needs its own calibration.

A bound that holds on average over all kinds of image may fail for one of them. So each kind that the fault classifier
predicts has a quantile of its own (Mondrian conformal prediction: Vovk, ACML 2012; by class: Romano et al., NeurIPS
2020), and the larger of this and that of all kinds is taken.

A calibration is plain JSON: trees as lists of numbers, read and evaluated by this package alone. It names the SHA-256
of the weights whose predictions it was fitted on and the cleaning of their labels, and is of no value for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.json_shape import TEXT, Spec, number, numbers, whole
from medseg.labels.scheme import LARGEST_LABEL
from medseg.results.accept_table import ACCEPT_FROM, ACCEPT_TABLE, GOOD_DICE, NEVER, AcceptTable
from medseg.results.verdict import StructureQuality, Thresholds
from medseg.trust.gradient_boosting import TREES, Floats, fit_boosted_trees
from medseg.trust.regression import StructureRegressor, features_for, fit_apart, patient_quantile, usual_error
from medseg.trust.stored import StoredPart

FEWEST_OF_A_KIND = 9
"""Patients without whom a kind of image has no bound of its own."""


def predicted_kind(features: Mapping[str, float]) -> str | None:
    """The kind of image that a fault classifier takes a case for, by its probabilities ``kind-NAME``; None without."""
    told = {name.removeprefix("kind-"): share for name, share in features.items() if name.startswith("kind-")}
    return max(told, key=told.__getitem__, default=None)


@dataclass(frozen=True)
class KindBound:
    """How far the errors go on images that the fault classifier takes for one kind."""

    name: str  # of the kind, ``"usual"`` too
    quantile: float  # conformal, of the scaled errors
    n_patients: int  # who have such an image


@dataclass(frozen=True)
class StructureCalibration(StructureRegressor):
    """The calibration of one structure: from features to its Dice, and the usual overestimate of that."""

    kinds: tuple[KindBound, ...] = ()  # those of enough patients; of others, what holds for all kinds is taken

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({kind.name for kind in self.kinds}) < len(self.kinds):
            raise ValueError(f"a kind of image has two bounds of {self.name}, expected one")

    def estimate(self, features: Mapping[str, float], kind: str | None = None) -> StructureQuality:
        """Predicted Dice and lower bound on an image of a predicted kind; 0 if a feature is not finite."""
        predicted = self.predict(features)
        return StructureQuality(self.label, self.name, 0.0, 0.0) if predicted is None else self.quality(predicted, kind)

    def quality(self, predicted: float, kind: str | None = None) -> StructureQuality:
        """What is said of a result whose Dice the regressor predicts as this."""
        predicted, lower_bound = float(np.clip(predicted, 0.0, 1.0)), 0.0
        if self.quantile is not None:
            size = float(np.interp(predicted, self.error_at, self.error))
            quantile = max([self.quantile, *(one.quantile for one in self.kinds if one.name == kind)])
            lower_bound = float(np.clip(predicted - quantile * size, 0.0, 1.0))
        return StructureQuality(self.label, self.name, predicted, lower_bound)

    def facts(self) -> dict[str, Any]:
        """What it is of, what it was fitted on, and the quantiles of its bound: of all kinds, and of each."""
        told = {"label": self.label, "name": self.name, "n_cases": self.n_cases, "n_patients": self.n_patients}
        return {**told, "quantile": self.quantile, "kinds": [*map(asdict, self.kinds)]}


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
    "kinds": [{"name!": TEXT, "quantile!": number(0.0, 1e6), "n_patients!": whole(1)}],
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
        "thresholds!": {"accept": number(0.0, 1.0), "reject!": number(0.0, 1.0)},
        "structures!": [_STRUCTURE],
        "provenance": TEXT,
        "cleaning": [TEXT],
        "accepted": ACCEPT_TABLE,
    }

    features: tuple[str, ...]  # names of the features that it was fitted with
    coverage: float  # share of cases whose Dice lies above the lower bound
    weights_sha256: str  # SHA-256 of the weights that made the predictions
    thresholds: Thresholds  # when to accept, review or reject
    structures: tuple[StructureCalibration, ...]  # one calibration per structure
    provenance: str = ""  # whose predictions it was fitted on, if not those of the weights themselves
    cleaning: tuple[str, ...] = ()  # what was done to the labels of these predictions at the end, step by step
    accepted: AcceptTable | None = None  # what the thresholds are worth; None in older files

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"the coverage is {self.coverage!r}, expected a share of the cases")
        labels = [structure.label for structure in self.structures]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"its structures are {labels[:20]}, expected each label once")
        if not all(set(structure.features) <= set(self.features) for structure in self.structures):
            raise ValueError("a structure rests on features that the calibration does not name")

    @property
    def wider_for(self) -> tuple[str, ...]:
        """Kinds of image for which the bound of a structure is lower than for others."""
        wider = {kind.name for one in self.structures for kind in one.kinds if kind.quantile > (one.quantile or 0.0)}
        return tuple(sorted(wider))

    def estimate(self, features: Mapping[str, float], kind: str | None = None) -> tuple[StructureQuality, ...]:
        """How good each structure of one case is expected to be, on an image of a predicted kind.

        Raises ``UsageError`` if a feature is missing.
        """
        if missing := [name for name in self.features if name not in features]:
            raise UsageError(f"the features {', '.join(missing)} are missing; the calibration was fitted with them")
        return tuple(structure.estimate(features, kind) for structure in self.structures)

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
            "accepted": self.accepted and self.accepted.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """From what fits :attr:`form`."""
        structures = [
            StructureCalibration(
                **StructureRegressor.fields_in({**item, "features": item["scores"]}),
                kinds=tuple(
                    KindBound(one["name"], one["quantile"], one["n_patients"]) for one in item.get("kinds") or ()
                ),
            )
            for item in content["structures"]
        ]
        return cls(
            tuple(content["scores"]),
            content["coverage"],
            content["weights_sha256"],
            Thresholds(content["thresholds"].get("accept"), content["thresholds"]["reject"]),
            tuple(structures),
            content.get("provenance") or "",
            tuple(content.get("cleaning") or ()),
            AcceptTable.from_json(content["accepted"]) if content.get("accepted") else None,
        )


@dataclass(frozen=True)
class FitOptions:
    """How a calibration is fitted."""

    coverage: float = 0.9  # probability that the Dice lies above the lower bound
    folds: int = 5  # over patients; they keep a case's error apart from the fit that predicted it
    thresholds: Thresholds = field(default_factory=Thresholds)  # without accept, that is chosen for the precision
    precision: float = 0.9  # share of good ones among accepted results
    good_dice: float = GOOD_DICE  # Dice that every structure of a good result has

    def __post_init__(self) -> None:
        if not 0.5 <= self.coverage < 1.0 or self.folds < 2:
            raise UsageError(f"coverage {self.coverage} and {self.folds} folds; give 0.5 to 1 and at least 2")
        if not (0.0 < self.precision < 1.0 and 0.0 < self.good_dice < 1.0):
            raise UsageError(f"precision {self.precision} at a Dice of {self.good_dice}; give both between 0 and 1")


@dataclass(frozen=True)
class AboutCases:
    """What is known of the cases of a calibration besides features, Dice and patient: one value per case each."""

    kinds: Sequence[str | None] | None = None  # as a fault classifier predicts that has not seen the patient
    own: Sequence[bool] | None = None  # whether it is the network's own result, without a fault put in; None: all are
    flagged: Sequence[bool] | None = None  # whether it is flagged, so that it is never accepted; None: none is


def fit_calibration(
    features: Mapping[str, Sequence[float]],
    dice: Mapping[int, Sequence[float | None]],
    names: Mapping[int, str],
    patients: Sequence[str],
    weights_sha256: str,
    options: FitOptions | None = None,
    weights: Sequence[float] | None = None,
    about: AboutCases | None = None,
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
        Coverage, folds, thresholds or what they are chosen for.
    weights
        How much each case counts beside the others of its patient; all the same by default.
    about
        Kinds of image, own results, flags.

    Raises
    ------
    UsageError
        If lengths differ, a feature is not finite, or a structure has fewer patients than folds.
    """
    options, about = options or FitOptions(), about or AboutCases()
    matrix = np.array(list(features.values()), dtype=np.float64).reshape(len(features), -1).T
    weight = np.ones(len(matrix)) if weights is None else np.asarray(weights, dtype=np.float64)
    kind = np.array(about.kinds or [None] * len(matrix), dtype=object)
    own = np.array(about.own or [True] * len(matrix), dtype=bool)
    flagged = np.array(about.flagged or [False] * len(matrix), dtype=bool)
    lengths = {*map(len, (matrix, patients, weight, kind, own, flagged)), *map(len, dice.values())}
    if not np.isfinite(matrix).all() or len(lengths) != 1:
        raise UsageError("features, Dice and patients differ in length or a feature is not finite; give one per case")
    structures, good, bound = [], np.ones(len(matrix), dtype=bool), np.where(flagged, NEVER, 1.0)
    for label, column in dice.items():
        target = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
        known = np.isfinite(target)
        used = features_for(label, tuple(features))
        inputs = matrix[known][:, [list(features).index(name) for name in used]]
        cases = _Cases(inputs, target[known], np.asarray(patients)[known], weight[known], kind[known])
        structure, predicted = _fit_structure(label, names[label], used, cases, options)
        structures.append(structure)
        least = np.full(len(matrix), NEVER)  # without the structure a result is flagged
        least[known] = [structure.quality(*one).lower_bound for one in zip(predicted, cases.kind, strict=True)]
        bound, good = np.minimum(bound, least), good & ~(target < options.good_dice)
    table = _accept_table(bound, good, own, patients, options)
    thresholds = options.thresholds
    if table.precision is not None:
        thresholds = replace(thresholds, accept=table.choose(table.precision, thresholds.reject))
    return Calibration(tuple(features), options.coverage, weights_sha256, thresholds, tuple(structures), accepted=table)


def _accept_table(
    bound: Floats, good: NDArray[np.bool_], own: NDArray[np.bool_], patients: Sequence[str], options: FitOptions
) -> AcceptTable:
    """What thresholds are worth, the given one among them; without a given one it names the precision to choose for."""
    if (given := options.thresholds.accept) is None:
        return AcceptTable.of(bound, good, own, patients, options.good_dice, options.precision)
    return AcceptTable.of(bound, good, own, patients, options.good_dice, None, sorted({*ACCEPT_FROM, given}))


class _Cases(NamedTuple):
    """Those that have a structure."""

    features: Floats
    dice: Floats
    patients: NDArray[Any]
    weight: Floats
    kind: NDArray[Any]


def _fit_structure(
    label: int, name: str, used: tuple[str, ...], cases: _Cases, options: FitOptions
) -> tuple[StructureCalibration, Floats]:
    """The calibration of one structure, and the Dice of each case that was predicted without its patient."""
    features, dice, patients, weight, kind = cases
    if (n_patients := len(set(patients))) < options.folds:
        raise UsageError(f"{name} has {n_patients} patients; calibrating with {options.folds} folds needs as many")
    regressor, predicted = fit_apart(features, dice, patients, weight, options.folds, fit_boosted_trees)
    predicted = np.clip(predicted, 0.0, 1.0)
    error_at, error = usual_error(predicted, predicted - dice, options.coverage)
    scaled = (predicted - dice) / np.interp(predicted, error_at, error)
    quantile = patient_quantile(scaled, patients, weight, options.coverage)
    kinds = []
    for one in sorted({str(value) for value in kind if value is not None}):
        own = kind == one
        n = len(set(patients[own]))
        of_kind = patient_quantile(scaled[own], patients[own], weight[own], options.coverage)
        if of_kind is not None and n >= FEWEST_OF_A_KIND:
            kinds.append(KindBound(one, of_kind, n))
    usual = tuple(error_at.tolist()), tuple(error.tolist())
    found = StructureCalibration(label, name, used, regressor, *usual, quantile, len(dice), n_patients, tuple(kinds))
    return found, predicted
