"""What speaks against a trust model that can be read and belongs to its bundle: it judges, but says the same of all.

Two questions are put to it. What its calibration holds itself: which lower bounds its trees can give, how wide they
are, and what it says of results drawn over the values at which its own trees branch. And, where the network may run,
what it says of results that are certainly poor: none at all, all classes alike, chance, in noise. A sound one,
which has seen poor results while it was fitted, rejects them. One that was made to deceive may know these, too; that
cannot be told without cases of one's own (``medseg trust fit`` says what a calibration was worth on them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.trust.calibration import Calibration, StructureCalibration
from medseg.trust.trust_model import TrustModel, poor_results

_DRAWS = 200
_SCALE = np.linspace(0.0, 1.0, 101)
_NARROW = 0.001
"""Bounds closer than this to the predicted Dice everywhere are none: those that were fitted are 0.005 wide at least."""


class Doubt(NamedTuple):
    """Something that speaks against a trust model: that it must not be used, or what to know of it."""

    severity: Literal["block", "warn"]
    what: str


def doubts_of_calibration(calibration: Calibration) -> Iterator[Doubt]:
    """What a calibration's own numbers say against it."""
    limits = calibration.thresholds
    lowest = [one.quality(one.regressor.range[0]) for one in calibration.structures]
    if limits.decide(lowest) == "accept" or _accepts_all_drawn(calibration):
        yield Doubt(
            "block", f"it accepts every result: no lower bound that it gives lies under accept ({limits.accept})"
        )
    for one in calibration.structures:
        if one.quantile is None:
            yield Doubt("warn", f"{one.name} has too few patients for a lower bound: nothing is accepted")
            continue
        found = [one.quality(predicted) for predicted in _SCALE.tolist()]
        if all(quality.predicted_dice - quality.lower_bound < _NARROW for quality in found):
            yield Doubt("block", f"the lower bound of {one.name} is the predicted Dice itself: it bounds nothing")
        if limits.accept is not None and all(quality.lower_bound < limits.accept for quality in found):
            yield Doubt("warn", f"no lower bound of {one.name} reaches accept ({limits.accept}): nothing is accepted")
    if limits.accept is None:
        yield Doubt("warn", "nothing is accepted: no threshold showed the precision that was asked for")
    if limits.reject <= 0.0:
        yield Doubt("warn", "reject is 0: nothing is rejected")


def _accepts_all_drawn(calibration: Calibration) -> bool:
    """Whether it accepts every result drawn over the values at which its trees branch, and a little beyond."""
    rng = np.random.default_rng(0)
    each = [one.regressor.predict(_drawn(one, rng)).tolist() for one in calibration.structures]
    cases = (
        [one.quality(p) for one, p in zip(calibration.structures, case, strict=True)]
        for case in zip(*each, strict=True)
    )
    return all(calibration.thresholds.decide(case) == "accept" for case in cases)


def _drawn(one: StructureCalibration, rng: np.random.Generator) -> NDArray[np.float64]:
    branches: list[list[float]] = [[] for _ in one.features]
    for tree in one.regressor.trees:
        for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
            if feature >= 0:
                branches[feature].append(threshold)
    low, high = (np.array([end(values, default=0.0) for values in branches]) for end in (min, max))
    beyond = 0.1 * (high - low) + 1e-3
    return np.asarray(rng.uniform(low - beyond, high + beyond, (_DRAWS, len(one.features))))


def doubts_of_model(model: TrustModel) -> Iterator[Doubt]:
    """What the verdicts on certainly poor results say against a trust model."""
    limits, statistics = model.calibration.thresholds, model.training_statistics
    found = {name: model.assess(crop) for name, crop in poor_results(model.channels, model.classes).items()}
    listed = ", ".join(found)
    if accepted := [name for name, one in found.items() if limits.decide(one.verdict.structures) == "accept"]:
        yield Doubt("block", f"it accepts {', '.join(accepted)} in noise")
    if limits.reject > 0.0 and not any(one.verdict.decision == "reject" for one in found.values()):
        yield Doubt("warn", f"it rejects none of these in noise: {listed}")
    if statistics is not None and not any(statistics.flags(one.features) for one in found.values()):
        yield Doubt("warn", f"it finds none of these in noise unlike the training: {listed}")
