"""Has a stream of studies changed? A test that may be looked at after every study, with a stated rate of false alarms.

What is watched of a study is a number, larger where it is worse. Its conformal p-value is its rank among all that came
before it, ties broken by lot: as long as the studies are exchangeable these p-values are independent and uniform,
whatever the numbers are (Vovk, Nouretdinov and Gammerman, ICML 2003; Vovk, "Testing randomness online", Statistical
Science 36:595, 2021). A bet is a density on [0, 1], large where the p-values of a worse stream lie: the product of its
values from any study on is a martingale that begins at 1. The sum over all studies that it may begin with (Shiryaev and
Roberts), less the number of studies, is a martingale, too: an e-detector (Shin, Ramdas and Rinaldo, New England Journal
of Statistics in Data Science 2:229, 2024). By optional stopping it reaches ``1 / rate`` within ``n`` studies with a
probability of at most ``n * rate``, however often one looks.

Quantities share the rate by weights, and each alarms on its own: p-values of one are independent of their own past, not
of that of others, so that a mean over quantities promises nothing when stopped (Choe and Ramdas, "Combining evidence
across filtrations", 2024), while expected numbers of false alarms add up however the quantities depend on each other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

SHIFTS = (0.5, 1.0)
"""Bets on every study being worse, by these multiples of the usual spread (of a normal distribution)."""
EXCESSES = ((0.01, 0.1), (0.03, 0.2), (0.1, 0.2), (0.3, 0.3))
"""Bets on a further share of the studies (second) being among the worst (first: the share that is usual)."""

_SMALLEST_P = 1e-12
_SMALLEST_STEP = 3.0
"""An alarm without a rise by so many standard errors is the lots' own and is not given; that makes alarms rarer."""


def p_values(values: Sequence[float], lots: Sequence[float]) -> Floats:
    """Of each value the share of it and all before it that are larger; equal ones by its lot, from [0, 1)."""
    known, found = list[float](), list[float]()
    for value, lot in zip(values, lots, strict=True):
        equal, larger = bisect_left(known, value), bisect_right(known, value)
        found.append((len(known) - larger + lot * (larger - equal + 1)) / (len(known) + 1))
        known.insert(larger, value)
    return np.array(found, dtype=np.float64)


def log_bets(p: Floats) -> Floats:
    """Logarithm of every bet ``(studies, bets)`` at p-values ``(studies,)``."""
    p = np.clip(p, _SMALLEST_P, 1 - _SMALLEST_P)[:, None]
    shift, (within, share) = np.array(SHIFTS), np.array(EXCESSES).T
    return np.concatenate([shift * -ndtri(p) - shift**2 / 2, np.log1p(share * ((p <= within) / within - 1))], axis=1)


@dataclass(frozen=True)
class Change:
    """What the test says of one quantity after all studies."""

    evidence: float  # the largest value of the statistic so far, in multiples of what an alarm needs
    told: int | None  # the study, counted from 0, at which the alarm was given; None without one
    since: int
    """The study with which the change seems to have begun: the likeliest place of one step of the mean (Hinkley
    1970)."""

    @property
    def changed(self) -> bool:
        """Whether there was an alarm."""
        return self.told is not None


def watch_changes(
    series: Mapping[str, Sequence[float | None]],
    lots: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    n_reference: int,
    rate: float,
) -> dict[str, Change]:
    """Test quantities of one stream of studies for change to the worse.

    Parameters
    ----------
    series
        Of every quantity its value in each study, larger where worse; None where it is not known, which says nothing.
    lots
        Likewise, a number in [0, 1) that has nothing to do with the values and is the same whenever one looks.
    weights
        The share of the rate that each quantity gets; at most 1 in all.
    n_reference
        How many of the first studies are taken as usual and not tested.
    rate
        False alarms per study that are allowed, all quantities together.
    """
    if (total := sum(weights.values())) > 1 + 1e-9 or not 0 < rate < 1:
        raise ValueError(f"weights of {total:g} in all and a rate of {rate:g}: expected at most 1, and between 0 and 1")
    return {
        name: _watched(values, lots[name], n_reference, -np.log(rate * weights[name]))
        for name, values in series.items()
    }


def _watched(values: Sequence[float | None], lots: Sequence[float], n_reference: int, needed: float) -> Change:
    """Test one quantity, whose statistic has to reach ``needed``, a logarithm."""
    study = np.array([i for i, value in enumerate(values) if value is not None], dtype=np.int64)
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    first = int(np.searchsorted(study, n_reference))
    if first == len(known):
        return Change(0.0, None, n_reference)
    bets = log_bets(p_values(known.tolist(), [lots[i] for i in study])[first:])
    product = np.cumsum(bets, axis=0)  # from the first study on; one from a later study is a ratio of two
    sums = product + np.logaddexp.accumulate(bets - product, axis=0)
    evidence = np.logaddexp.reduce(sums, axis=1) - np.log(bets.shape[1]) - needed
    # a result as usual raises nothing, and is not looked at: of rare ones few are left, and not all of a long stream
    worse = known * np.arange(1, len(known) + 1) > np.cumsum(known)
    above = np.flatnonzero(np.maximum.accumulate(evidence) >= 0) + first
    rises = ((at, _step(known[: at + 1], first)[1] if worse[at] else 0.0) for at in above)
    told = next((int(study[at]) for at, rise in rises if rise >= _SMALLEST_STEP), None)
    since, _ = _step(known[: first + int(evidence.argmax()) + 1], first)
    return Change(float(np.exp(min(evidence.max(), 700.0))), told, int(study[since]))


def _step(values: Floats, first: int) -> tuple[int, float]:
    """Where, from ``first`` on, the mean rises most for its spread, and by how many standard errors."""
    before = np.arange(max(first, 1), len(values))
    if not len(before) or not np.ptp(values):  # the deviation of equal values may be a rounding error
        return first, 0.0
    total, after = np.cumsum(values)[before - 1], len(values) - before
    rise = (values.sum() - total) / after - total / before
    errors = rise * np.sqrt(before * after / len(values)) / values.std()
    return int(before[errors.argmax()]), float(errors.max())
