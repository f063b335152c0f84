"""From features without ground truth to an interval round the volume of each structure.

What is asked is the volume of a reference over that of the result. Its logarithm lies within ``quantile × spread`` of a
usual value as often as the coverage says: conformal prediction with errors scaled by what a regressor expects of the
case (Lei et al., JASA 113:1094, 2018), cross-fitted, every patient counted once, as in
:mod:`medseg.trust.calibration`. The scaled interval is kept if it is on average narrower than nine tenths of the
constant one, whose spread is 1; else the constant one is.

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

from medseg.errors import UsageError
from medseg.json_shape import TEXT, Spec, number, whole
from medseg.labels.scheme import LARGEST_LABEL
from medseg.results.verdict import Interval
from medseg.trust.calibration import conformal_quantile, features_for
from medseg.trust.gradient_boosting import TREES, BoostedTrees, fit_boosted_trees
from medseg.trust.stored import StoredPart

FOLDS = 5
NARROWER = 0.9
"""A scaled interval whose mean width is not below this share of the constant one's is not worth its trees."""
_FEWEST_TO_SCALE = 20
"""Patients without whom no regressor is tried."""
_SMALLEST_SPREAD = 0.01
"""Expected errors below one per cent are taken as this, so that no interval rests on a handful of perfect cases."""
_LARGEST_SPREAD = 1.0
_WIDEST = math.log(10.0)
"""From a tenth of what was found to ten times as much: that is no statement about a volume."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StructureInterval:
    """How far the volume of one structure may be from that of a reference."""

    label: int
    name: str
    centre: float  # usual log of the reference's volume over that of the result
    quantile: float | None  # conformal, of the scaled errors of that log; None: too few patients for the coverage
    features: tuple[str, ...]  # names of what the regressor takes, in its order; none if the width is constant
    spread: BoostedTrees | None  # features → expected error of the log; None: the width is constant
    narrower: float | None  # mean width of the scaled interval over that of the constant one; None: not tried
    n_cases: int
    n_patients: int  # n_cases and n_patients: what it was fitted on

    def __post_init__(self) -> None:
        trees = () if self.spread is None else self.spread.trees
        if any(feature >= len(self.features) for tree in trees for feature in tree.feature):
            raise ValueError("a tree asks for a feature that is not there")
        if (self.spread is None) != (not self.features):
            raise ValueError(f"the interval of {self.name} has features without a regressor, or one without any")
        if not set(self.features) <= set(features_for(self.label, self.features)):
            raise ValueError(f"the structure {self.label} rests on features of another one")
        if self.n_patients > self.n_cases:
            raise ValueError(f"{self.n_cases} cases of {self.n_patients} patients were fitted on, which cannot be")

    def factors(self, features: Mapping[str, float], coverage: float) -> Interval | None:
        """Least and largest volume of a reference, times what was found, which lies between.

        None if nothing is known: too few patients, a feature that is not finite, or more than ten times either way.
        """
        if self.quantile is None:
            return None
        row = np.array([[features[name] for name in self.features]], dtype=np.float64)
        if not np.isfinite(row).all():
            return None
        half = self.quantile * (1.0 if self.spread is None else float(_within(self.spread.predict(row))[0]))
        low, high = self.centre - half, self.centre + half
        if max(-low, high) > _WIDEST:
            return None
        return Interval(math.exp(min(low, 0.0)), math.exp(max(high, 0.0)), coverage)

    def facts(self) -> dict[str, Any]:
        """What it is of, what it was fitted on, and which width was kept."""
        kept = "none" if self.quantile is None else "constant" if self.spread is None else "scaled"
        names = ("label", "name", "n_cases", "n_patients", "narrower")
        return {**{name: getattr(self, name) for name in names}, "width": kept}

    def describe(self) -> str:
        """Width, and why it is that."""
        if self.quantile is None:
            return f"{self.name}: no interval of its volume, {self.n_patients} patients are too few"
        tried = "" if self.narrower is None else f"; scaled by the case it is {self.narrower:.2f} times as wide"
        if self.spread is not None:
            return (
                f"{self.name}: interval of its volume scaled by the case, {self.narrower:.2f} of a constant one's width"
            )
        at = self.factors({}, 0.0)
        width = "more than ten times either way" if at is None else f"{at.low:.2f} to {at.high:.2f} times it"
        return f"{self.name}: constant interval of its volume, {width}{tried}"


_STRUCTURE: Spec = {
    "label!": whole(1, LARGEST_LABEL),
    "name!": TEXT,
    "centre!": number(-_WIDEST, _WIDEST),
    "quantile": number(1e-9, 1e6),
    "scores!": [TEXT],
    "spread": TREES,
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
                item["centre"],
                item.get("quantile"),
                tuple(item["scores"]),
                BoostedTrees.from_json(item["spread"]) if item.get("spread") else None,
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
        blank = StructureInterval(label, names[label], 0.0, None, (), None, None, len(ratios), len(set(patient)))
        structures.append(_fitted(blank, used, inputs, ratios, (patient, weight[known]), coverage))
    return VolumeInterval(coverage, weights_sha256, tuple(structures), cleaning)


def _fitted(
    blank: StructureInterval,
    used: tuple[str, ...],
    inputs: Floats,
    ratios: Floats,
    counted: tuple[NDArray[np.int64], Floats],
    coverage: float,
) -> StructureInterval:
    """The interval of one structure; ``counted``: the patient of each result, by number, and its weight."""
    (patient, weight), n = counted, blank.n_patients
    folds = min(FOLDS, n)
    if folds < 2:
        return blank
    share = weight / np.bincount(patient, weight)[patient]  # every patient counts once
    fold = (np.random.default_rng(0).permutation(n) % folds)[patient]
    scales = bool(used) and n >= _FEWEST_TO_SCALE
    error, spread = np.empty(len(ratios)), np.ones(len(ratios))
    for part in range(folds):
        out = fold == part
        centre = _centre(ratios[~out], share[~out])
        error[out] = np.abs(ratios[out] - centre)
        if scales:
            spread[out] = _within(_regressor(inputs[~out], ratios[~out] - centre, share[~out]).predict(inputs[out]))
    constant, scaled = (conformal_quantile(e, coverage, share / (n + 1)) for e in (error, error / spread))
    centre = _centre(ratios, share)
    found = replace(blank, centre=float(np.clip(centre, -_WIDEST, _WIDEST)), quantile=constant)
    if not scales or not constant or scaled is None:
        return found
    found = replace(found, narrower=scaled * float(np.average(spread, weights=share)) / constant)
    if found.narrower is None or found.narrower >= NARROWER:
        return found
    return replace(found, quantile=scaled, features=used, spread=_regressor(inputs, ratios - centre, share))


def _centre(ratios: Floats, share: Floats) -> float:
    """The median, every patient counted once."""
    return conformal_quantile(ratios, 0.5, share / share.sum()) or 0.0


def _regressor(inputs: Floats, errors: Floats, share: Floats) -> BoostedTrees:
    """From features to the error that is expected."""
    return fit_boosted_trees(inputs, np.minimum(np.abs(errors), _LARGEST_SPREAD), share)


def _within(spread: Floats) -> Floats:
    return np.clip(spread, _SMALLEST_SPREAD, _LARGEST_SPREAD)
