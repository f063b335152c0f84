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


class Ranks:
    """What came so far of one quantity, and where a new value lies in it."""

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def p_value(self, value: float, lot: float) -> float:
        """The share of all values so far, this one included, that are larger; equal ones by lot, from [0, 1)."""
        equal, larger = bisect_left(self._sorted, value), bisect_right(self._sorted, value)
        n = len(self._sorted)
        self._sorted.insert(larger, value)
        return ((n - larger) + lot * (larger - equal + 1)) / (n + 1)


def log_bets(p: Floats) -> Floats:
    """Logarithm of every bet ``(quantities, bets)`` at p-values ``(quantities,)``."""
    p = np.clip(p, _SMALLEST_P, 1 - _SMALLEST_P)[:, None]
    shift, (within, share) = np.array(SHIFTS), np.array(EXCESSES).T
    return np.concatenate([shift * -ndtri(p) - shift**2 / 2, np.log1p(share * ((p <= within) / within - 1))], axis=1)


@dataclass(frozen=True)
class Change:
    """What the test says of one quantity after all studies.

    Parameters
    ----------
    evidence
        The largest value of the statistic so far, in multiples of what an alarm needs.
    told
        The study, counted from 0, at which the alarm was given; None without one.
    since
        The study with which the change seems to have begun: the likeliest place of one step of the mean (Hinkley 1970).
    """

    evidence: float
    told: int | None
    since: int

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
    ranks = [Ranks() for _ in series]
    needed = np.log([1.0 / (rate * weights[name]) for name in series])
    sums, peak = np.full((len(series), len(SHIFTS) + len(EXCESSES)), -np.inf), np.full(len(series), -np.inf)
    told, highest = np.full(len(series), -1), np.zeros(len(series), dtype=np.int64)
    columns, drawn = list(series.values()), [lots[name] for name in series]
    for study, pairs in enumerate(zip(zip(*columns, strict=True), zip(*drawn, strict=True), strict=True)):
        triples = zip(ranks, *pairs, strict=True)
        p = np.array([np.nan if value is None else rank.p_value(value, lot) for rank, value, lot in triples])
        if study < n_reference:
            continue
        known = np.isfinite(p)
        sums[known] = np.logaddexp(0.0, sums[known]) + log_bets(p[known])
        evidence = np.logaddexp.reduce(sums, axis=1) - np.log(sums.shape[1]) - needed
        highest = np.where(evidence > peak, study, highest)
        peak = np.maximum(evidence, peak)
        for i in np.flatnonzero((told < 0) & (peak >= 0)):
            if _step(columns[i][: study + 1], n_reference)[1] >= _SMALLEST_STEP:
                told[i] = study
    steps = [_step(column[: highest[i] + 1], n_reference)[0] for i, column in enumerate(columns)]
    found = zip(np.exp(np.minimum(peak, 700.0)).tolist(), told.tolist(), steps, strict=True)
    return dict(zip(series, [Change(one, None if at < 0 else at, step) for one, at, step in found], strict=True))


def _step(values: Sequence[float | None], first: int) -> tuple[int, float]:
    """Where, from ``first`` on, the mean rises most for its spread, and by how many standard errors."""
    known = np.array([study for study, value in enumerate(values) if value is not None], dtype=np.int64)
    numbers = np.array([values[study] for study in known], dtype=np.float64)
    before = np.flatnonzero((known >= first) & (np.arange(len(known)) > 0))
    if not len(before) or numbers.std() == 0:
        return first, 0.0
    total, after = np.cumsum(numbers)[before - 1], len(known) - before
    rise = (numbers.sum() - total) / after - total / before
    errors = rise * np.sqrt(before * after / len(known)) / numbers.std()
    return int(known[before[errors.argmax()]]), float(errors.max())
