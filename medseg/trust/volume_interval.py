"""From features without ground truth to an interval round the volume of each structure.

A regressor says the logarithm of the volume of a reference over that of the result. Its error, held out patient by
patient, stays below ``quantile × usual error`` as often as the coverage says, above and below alike; the usual error
grows with what is predicted. That is conformal prediction as in :mod:`medseg.trust.calibration`, with the same score
(Lei et al., JASA 113:1094, 2018), cross-fitted, every patient counted once. What was found always lies in the interval.
It is kept if it is on average narrower than nine tenths of the constant one, which predicts the median for every
result; else the constant one is.

It speaks of results that are not flagged, since it was fitted on such alone. What is flagged has no interval, nor has a
structure that was not found: nothing times any factor is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.json_shape import TEXT, Spec, number, numbers, whole
from medseg.labels.scheme import LARGEST_LABEL
from medseg.results.verdict import Interval
from medseg.trust.calibration import conformal_quantile, features_for, usual_error
from medseg.trust.gradient_boosting import TREES, BoostedTrees, fit_boosted_trees
from medseg.trust.stored import StoredPart

FOLDS = 5
NARROWER = 0.9
"""An interval by case is not worth its trees unless its mean width is below this share of the constant one's."""
_FEWEST_TO_REGRESS = 20
"""Patients without whom no regressor is tried."""
_SMALLEST = 1e-6
"""Quantiles below this are taken as this, so that an interval is one."""
_WIDEST = math.log(10.0)
"""From a tenth of what was found to ten times as much: that is no statement about a volume."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StructureInterval:
    """How far the volume of one structure may be from that of a reference."""

    label: int
    name: str
    features: tuple[str, ...]  # names of what the regressor takes, in its order; none if the interval is constant
    regressor: BoostedTrees  # features → log of the reference's volume over that of the result
    error_at: tuple[float, ...]
    error: tuple[float, ...]
    """Usual error of that log at some values of its size (ascending); interpolated between."""
    quantile: float | None  # conformal, of the scaled errors; None: too few patients for the coverage
    narrower: float | None  # mean width over that of the constant interval, if one was tried that depends on the case
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

    def factors(self, features: Mapping[str, float], coverage: float) -> Interval | None:
        """Least and largest volume of a reference, times what was found, which lies between.

        None if nothing is known: too few patients, a feature that is not finite, or more than ten times either way.
        """
        row = np.array([[features[name] for name in self.features]], dtype=np.float64)
        if self.quantile is None or not np.isfinite(row).all():
            return None
        low, high = _limits(self.regressor.predict(row), self.quantile, self.error_at, self.error)
        if max(-low[0], high[0]) > _WIDEST:
            return None
        return Interval(math.exp(low[0]), math.exp(high[0]), coverage)

    def facts(self) -> dict[str, Any]:
        """What it is of, what it was fitted on, and which width was kept."""
        kept = "none" if self.quantile is None else "by case" if self.features else "constant"
        names = ("label", "name", "n_cases", "n_patients", "narrower")
        return {**{name: getattr(self, name) for name in names}, "width": kept}

    def describe(self) -> str:
        """Width, and why it is that."""
        if self.quantile is None:
            return f"{self.name}: no interval of its volume, {self.n_patients} patients are too few"
        tried = "" if self.narrower is None else f"; one by case is {self.narrower:.2f} times as wide"
        if self.features:
            return f"{self.name}: interval of its volume by case, {self.narrower:.2f} times as wide as a constant one"
        at = self.factors({}, 0.0)
        width = "more than ten times either way" if at is None else f"{at.low:.2f} to {at.high:.2f} times it"
        return f"{self.name}: constant interval of its volume, {width}{tried}"


_STRUCTURE: Spec = {
    "label!": whole(1, LARGEST_LABEL),
    "name!": TEXT,
    "scores!": [TEXT],
    "regressor!": {**TREES, "constant!": number(-_WIDEST, _WIDEST)},
    "error_at!": numbers(0.0, 10.0),
    "error!": numbers(1e-9, 100.0),
    "quantile": number(1e-9, 1e6),
    "narrower": number(0.0, 1e6),
    "n_cases!": whole(0),
    "n_patients!": whole(0),
}


@dataclass(frozen=True)
class VolumeInterval(StoredPart):
    """Everything a bundle's ``trust/volume_interval.json`` says."""

    what = "volume interval"
    file_format = "medseg-volume-interval-1"
    form: ClassVar[Spec] = {
        "coverage!": number(0.5, 1.0),
        "weights_sha256!": TEXT,
        "cleaning": [TEXT],
        "structures!": [_STRUCTURE],
    }

    coverage: float  # share of patients whose volume lies in the interval
    weights_sha256: str  # SHA-256 of the weights that made the predictions
    structures: tuple[StructureInterval, ...]
    cleaning: tuple[str, ...] = ()  # what was done to the labels of these predictions at the end, step by step

    def __post_init__(self) -> None:
        if not 0.5 <= self.coverage < 1.0:
            raise ValueError(f"the coverage is {self.coverage!r}, expected 0.5 to below 1")
        labels = [structure.label for structure in self.structures]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"its structures are {labels[:20]}, expected each label once")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that some width rests on."""
        return tuple(dict.fromkeys(name for structure in self.structures for name in structure.features))

    def factors(self, label: int, features: Mapping[str, float]) -> Interval | None:
        """Of one structure, see :meth:`StructureInterval.factors`; None for one that it does not know."""
        own = next((structure for structure in self.structures if structure.label == label), None)
        return None if own is None else own.factors(features, self.coverage)

    def facts(self) -> dict[str, Any]:
        """For ``run.json`` and ``--json``."""
        return {"coverage": self.coverage, "structures": [structure.facts() for structure in self.structures]}

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        structures = [
            {"scores" if key == "features" else key: value for key, value in asdict(structure).items()}
            for structure in self.structures
        ]
        return {
            "coverage": self.coverage,
            "weights_sha256": self.weights_sha256,
            "cleaning": list(self.cleaning),
            "structures": structures,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> VolumeInterval:
        """From what fits :attr:`form`."""
        structures = [
            StructureInterval(
                item["label"],
                item["name"],
                tuple(item["scores"]),
                BoostedTrees.from_json(item["regressor"]),
                tuple(item["error_at"]),
                tuple(item["error"]),
                item.get("quantile"),
                item.get("narrower"),
                item["n_cases"],
                item["n_patients"],
            )
            for item in content["structures"]
        ]
        cleaning = tuple(content.get("cleaning") or ())
        return cls(content["coverage"], content["weights_sha256"], tuple(structures), cleaning)


def fit_volume_interval(
    features: Mapping[str, Sequence[float]],
    log_ratios: Mapping[int, Sequence[float | None]],
    names: Mapping[int, str],
    patients: Sequence[str],
    weights_sha256: str,
    coverage: float = 0.9,
    weights: Sequence[float] | None = None,
    cleaning: tuple[str, ...] = (),
) -> VolumeInterval:
    """Fit on results with ground truth that the network was not trained on.

    Parameters
    ----------
    features, patients, weights_sha256, weights
        As for :func:`medseg.trust.calibration.fit_calibration`.
    log_ratios
        Label → :attr:`~medseg.trust.fit_cases.Overlap.log_ratio` of each result, ``None`` for one that is flagged or
        lacks the structure.
    names
        Label → name.
    coverage
        How often the volume of a reference shall lie in the interval.
    cleaning
        What was done to the labels at the end.

    Raises
    ------
    UsageError
        If lengths differ or a feature is not finite.
    """
    weight = np.ones(len(patients)) if weights is None else np.asarray(weights, dtype=np.float64)
    lengths = {len(patients), *map(len, (weight, *features.values(), *log_ratios.values()))}
    matrix = np.array([*features.values()] if len(lengths) == 1 else [[np.nan]], dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise UsageError("features, ratios and patients differ in length or a feature is not finite; give one per case")
    matrix = matrix.reshape(len(features), len(patients))
    structures = []
    for label, column in log_ratios.items():
        known = np.array([value is not None for value in column], dtype=bool)
        used = features_for(label, tuple(features))
        inputs = matrix[[list(features).index(name) for name in used]].T[known]
        ratios = np.array([value for value in column if value is not None], dtype=np.float64)
        _, patient = np.unique(np.asarray(patients)[known], return_inverse=True)
        counted = _Counted(ratios, patient, weight[known])
        structures.append(_fitted(label, names[label], used, inputs, counted, coverage))
    return VolumeInterval(coverage, weights_sha256, tuple(structures), cleaning)


class _Counted(NamedTuple):
    """Results by log ratio, patient (numbered) and weight."""

    ratios: Floats
    patient: NDArray[np.int64]
    weight: Floats

    @property
    def share(self) -> Floats:
        """How much each result counts, so that every patient counts once."""
        return np.asarray(self.weight / np.bincount(self.patient, self.weight)[self.patient])


def _fitted(
    label: int, name: str, used: tuple[str, ...], inputs: Floats, counted: _Counted, coverage: float
) -> StructureInterval:
    """The interval of one structure; ``inputs`` are results × features."""
    ratios, share, n = counted.ratios, counted.share, len(set(counted.patient.tolist()))
    constant = _constant(_median(ratios, share) if n else 0.0)
    blank = StructureInterval(label, name, (), constant, (0.0,), (1.0,), None, None, len(ratios), n)
    if n < 2:
        return blank
    fold = (np.random.default_rng(0).permutation(n) % min(FOLDS, n))[counted.patient]
    regress = bool(used) and n >= _FEWEST_TO_REGRESS
    at_median, predicted = np.empty(len(ratios)), np.empty(len(ratios))
    for part in range(int(fold.max()) + 1):
        out = fold == part
        at_median[out] = _median(ratios[~out], share[~out])
        if regress:
            predicted[out] = _regressor(inputs[~out], ratios[~out], share[~out]).predict(inputs[out])
    mass = share / (n + 1)
    if (width := conformal_quantile(np.abs(ratios - at_median), coverage, mass)) is None:
        return blank
    width = max(width, _SMALLEST)
    blank = replace(blank, quantile=width)
    if not regress:
        return blank
    error = np.abs(ratios - predicted)
    error_at, usual = usual_error(np.abs(predicted), error, coverage)
    quantile = conformal_quantile(error / np.interp(np.abs(predicted), error_at, usual), coverage, mass)
    assert quantile is not None, "as many results as the constant one has"
    widths = [
        np.average(high - low, weights=share)
        for low, high in (
            _limits(predicted, quantile, error_at, usual),
            _limits(at_median, width, blank.error_at, blank.error),
        )
    ]
    blank = replace(blank, narrower=float(widths[0] / widths[1]))
    if widths[0] >= NARROWER * widths[1]:
        return blank
    return replace(
        blank,
        features=used,
        regressor=_regressor(inputs, ratios, share),
        error_at=tuple(error_at.tolist()),
        error=tuple(usual.tolist()),
        quantile=max(quantile, _SMALLEST),
    )


def _limits(
    predicted: Floats, quantile: float, error_at: Sequence[float] | Floats, error: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    """Ends of the intervals round predicted logs of the ratio; 0, which is what was found, lies between."""
    half = quantile * np.interp(np.abs(predicted), error_at, error)
    return np.minimum(predicted - half, 0.0), np.maximum(predicted + half, 0.0)


def _constant(value: float) -> BoostedTrees:
    """No trees at all: the same for every result."""
    return BoostedTrees(float(np.clip(value, -_WIDEST, _WIDEST)), 0.0, ())


def _median(ratios: Floats, share: Floats) -> float:
    """The usual ratio, every patient counted once."""
    return conformal_quantile(ratios, 0.5, share / share.sum()) or 0.0


def _regressor(inputs: Floats, ratios: Floats, share: Floats) -> BoostedTrees:
    """From features to the log of the ratio, as far as that is the matter of a volume."""
    return fit_boosted_trees(inputs, np.clip(ratios, -_WIDEST, _WIDEST), share)
