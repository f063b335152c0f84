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
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medseg.json_shape import TEXT, Spec, number, numbers, whole
from medseg.labels.scheme import LARGEST_LABEL
from medseg.results.verdict import Interval
from medseg.trust.gradient_boosting import TREES, BoostedTrees, Floats, fit_boosted_trees
from medseg.trust.regression import (
    StructureRegressor,
    conformal_quantile,
    features_for,
    fit_apart,
    patient_quantile,
    shares,
    usual_error,
)
from medseg.trust.stored import StoredPart

_FOLDS = 5
NARROWER = 0.9
"""An interval by case is not worth its trees unless its mean width is below this share of the constant one's."""
_FEWEST_TO_REGRESS = 20
"""Patients without whom no regressor is tried."""
_SMALLEST = 1e-6
"""Quantiles below this are taken as this, so that an interval is one."""
_WIDEST = math.log(10.0)
"""From a tenth of what was found to ten times as much: that is no statement about a volume."""


@dataclass(frozen=True)
class StructureInterval(StructureRegressor):
    """How far the log of a reference's volume over that of the result may be; without features it is constant."""

    narrower: float | None  # mean width over that of the constant interval, if one was tried that depends on the case

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features and self.narrower is None:
            raise ValueError(f"the interval of {self.name} is by case and does not say how wide it is")

    def factors(self, features: Mapping[str, float], coverage: float) -> Interval | None:
        """Least and largest volume of a reference, times what was found, which lies between.

        None if nothing is known: too few patients, a feature that is not finite, or more than ten times either way.
        """
        predicted = self.predict(features)
        if self.quantile is None or predicted is None:
            return None
        low, high = _limits(np.array([predicted]), self.quantile, self.error_at, self.error)
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
    "features!": [TEXT],
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
        content, keys = asdict(self), [key.rstrip("!") for key in _STRUCTURE]
        return {**content, "structures": [{key: one[key] for key in keys} for one in content["structures"]]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> VolumeInterval:
        """From what fits :attr:`form`."""
        structures = tuple(
            StructureInterval(**StructureRegressor.fields_in(item), narrower=item.get("narrower"))
            for item in content["structures"]
        )
        cleaning = tuple(content.get("cleaning") or ())
        return cls(content["coverage"], content["weights_sha256"], structures, cleaning)


def fit_volume_interval(
    features: Mapping[str, Sequence[float]],
    log_ratios: Mapping[int, Sequence[float | None]],
    names: Mapping[int, str],
    patients: Sequence[str],
    weights_sha256: str,
    coverage: float,
    weights: Sequence[float],
    cleaning: tuple[str, ...] = (),
) -> VolumeInterval:
    """Fit on results with ground truth that the network was not trained on, of one length each.

    Parameters
    ----------
    features, names, patients, weights_sha256, weights
        As for :func:`medseg.trust.calibration.fit_calibration`, which refuses what does not fit together.
    log_ratios
        Label → :attr:`~medseg.trust.fit_cases.Overlap.log_ratio` of each result, ``None`` for one that is flagged or
        lacks the structure.
    coverage
        How often the volume of a reference shall lie in the interval.
    cleaning
        What was done to the labels at the end.
    """
    structures = []
    for label, column in log_ratios.items():
        known = np.array([value is not None for value in column], dtype=bool)
        used = features_for(label, tuple(features))
        inputs = np.array([features[name] for name in used], dtype=np.float64).reshape(len(used), len(column)).T[known]
        ratios = np.array([value for value in column if value is not None], dtype=np.float64)
        whose, weight = np.asarray(patients)[known], np.asarray(weights, dtype=np.float64)[known]
        structures.append(_fitted(label, names[label], used, inputs, ratios, whose, weight, coverage))
    return VolumeInterval(coverage, weights_sha256, tuple(structures), cleaning)


def _fitted(
    label: int,
    name: str,
    used: tuple[str, ...],
    inputs: Floats,
    ratios: Floats,
    patients: NDArray[Any],
    weight: Floats,
    coverage: float,
) -> StructureInterval:
    """The interval of one structure; ``inputs`` are results × features."""
    (share, n), folds = shares(patients, weight), min(_FOLDS, len(set(patients)))
    median, constant = fit_apart(inputs, ratios, patients, weight, folds, _median)
    found = StructureInterval(label, name, (), median, (0.0,), (1.0,), None, len(ratios), n, None)
    width = patient_quantile(np.abs(ratios - constant), patients, weight, coverage, _SMALLEST)
    if width is None or n < 2:
        return found
    found = replace(found, quantile=width)
    if not used or n < _FEWEST_TO_REGRESS:
        return found
    target = np.clip(ratios, -_WIDEST, _WIDEST)  # as far as that is the matter of a volume
    trees, predicted = fit_apart(inputs, target, patients, weight, folds, fit_boosted_trees)
    error = np.abs(ratios - predicted)
    at, usual = usual_error(np.abs(predicted), error, coverage)
    quantile = patient_quantile(error / np.interp(np.abs(predicted), at, usual), patients, weight, coverage, _SMALLEST)
    assert quantile is not None, "as many results as the constant one has"
    ends = _limits(predicted, quantile, at, usual), _limits(constant, width, (0.0,), (1.0,))
    by_case, fixed = (float(np.average(high - low, weights=share)) for low, high in ends)
    found = replace(found, narrower=by_case / fixed)
    if by_case >= NARROWER * fixed:
        return found
    scale = tuple(at.tolist()), tuple(usual.tolist())
    return replace(found, features=used, regressor=trees, error_at=scale[0], error=scale[1], quantile=quantile)


def _limits(
    predicted: Floats, quantile: float, error_at: Sequence[float] | Floats, error: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    """Ends of the intervals round predicted logs of the ratio; 0, which is what was found, lies between."""
    half = quantile * np.interp(np.abs(predicted), error_at, error)
    return np.minimum(predicted - half, 0.0), np.maximum(predicted + half, 0.0)


def _median(_: Floats, ratios: Floats, share: Floats) -> BoostedTrees:
    """The usual ratio, every patient counted once; 0 without any. It has no trees."""
    usual = (conformal_quantile(ratios, 0.5, share / share.sum()) if len(ratios) else None) or 0.0
    return BoostedTrees(float(np.clip(usual, -_WIDEST, _WIDEST)), 0.0, ())
