"""What the judgements of a run are worth: of the results that it accepted without references, how many are good?

A result is good if each of its structures has at least the Dice that is asked for. Cases that the network has learnt
from are left out: a judgement is tried on held-out cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medseg.evaluation.case import StructureResult
from medseg.results.accept_table import GOOD_DICE
from medseg.results.case_result import CaseResult
from medseg.results.verdict import Judged


@dataclass(frozen=True)
class Share:
    """``count`` of ``of`` cases, with the exact 95 % interval (Clopper and Pearson 1934)."""

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def counted(cls, count: int, of: int) -> Share:
        """With its interval; of no case at all it is 0 to 1."""
        from scipy.stats import binomtest

        interval = binomtest(count, of).proportion_ci(method="exact") if of else None
        low, high = (interval.low, interval.high) if interval else (0.0, 1.0)
        return cls(count, of, round(float(low), 4), round(float(high), 4))


@dataclass(frozen=True)
class CaseQuality:
    """How good one result is: the worst Dice, and the means of Dice and HD95 over the structures that have them."""

    worst_dice: float
    dice: float
    hd95_mm: float | None

    @classmethod
    def of(cls, rows: Sequence[StructureResult]) -> CaseQuality | None:
        """Of the rows of one case; None if neither side has a structure."""
        dice = [value for row in rows if (value := row.values.get("dice")) is not None]
        distances = [value for row in rows if (value := row.values.get("hd95_mm")) is not None]
        if not dice:
            return None
        return cls(min(dice), float(np.mean(dice)), float(np.mean(distances)) if distances else None)


def _discriminator(case: Judged) -> bool | None:
    return None if case.discriminator is None else case.discriminator.decision == "accept"


def _calibrated(case: Judged) -> bool | None:
    return case.trust.decision == "accept" if case.trust is not None and case.trust.calibrated else None


def _both(case: Judged) -> bool | None:
    found = [_discriminator(case), _calibrated(case)]
    return None if None in found else all(found)


JUDGES: Mapping[str, Callable[[Judged], bool | None]] = {
    "discriminator": _discriminator,
    "calibrated": _calibrated,
    "both": _both,
}
"""Whether a judge accepts a case; None if it has not judged it. What is to be reviewed is not accepted."""


def acceptances(
    judged: Mapping[str, Judged],
    rows: Iterable[StructureResult],
    *,
    bundle_dice: float | None = None,
    learnt: Iterable[str] = (),
) -> dict[str, Any] | None:
    """The object ``accepted`` in ``metrics.json``: each judge that a run had, on its held-out cases.

    ``judged``: the run's cases by the evaluation's case id. ``rows``: of all scored cases. ``bundle_dice``: Dice from
    which the bundle accepts, a second limit beside :data:`GOOD_DICE`. ``learnt``: ids of cases that the network has
    learnt from. None if no case was judged.
    """
    by_case: dict[str, list[StructureResult]] = {}
    for row in rows:
        by_case.setdefault(row.case_id, []).append(row)
    quality = {case: found for case, own in by_case.items() if (found := CaseQuality.of(own)) and case in judged}
    seen = set(learnt)
    limits = sorted({GOOD_DICE} if bundle_dice is None else {GOOD_DICE, bundle_dice})
    table = []
    for name, judge in JUDGES.items():
        said = {case: yes for case in quality if (yes := judge(judged[case])) is not None}
        if said:
            held_out = {case: yes for case, yes in said.items() if case not in seen}
            table.append(_acceptance(name, held_out, quality, limits))
    if not table:
        return None
    return {"left_out_as_trained_on": len(seen & quality.keys()), "judges": table}


def volume_coverage(
    run: Mapping[str, CaseResult], rows: Iterable[StructureResult], learnt: Iterable[str] = ()
) -> dict[str, Any] | None:
    """The object ``volume_intervals`` in ``metrics.json``: how many references lie in the interval of their volume.

    Parameters are those of :func:`acceptances`. None if the run has no intervals.
    """
    known = {(case, one.label): one.interval for case, found in run.items() for one in found.structures if one.interval}
    seen, hits = set(learnt), dict[str, list[bool]]()
    for row in rows:
        interval, volume_ml = known.get((row.case_id, row.label)), row.values.get("reference_volume_ml")
        if interval is not None and volume_ml is not None and row.case_id not in seen:
            hits.setdefault(row.name, []).append(interval.low <= volume_ml <= interval.high)
    if not known:
        return None
    shares = {name: asdict(Share.counted(sum(inside), len(inside))) for name, inside in hits.items()}
    return {"coverage": next(iter(known.values())).coverage, "structures": shares}


def _acceptance(
    judge: str, said: Mapping[str, bool], quality: Mapping[str, CaseQuality], limits: Sequence[float]
) -> dict[str, Any]:
    """What one judge accepts, and how good that is, by the Dice that every structure of a good result reaches."""
    accepted, others = ([quality[case] for case, yes in said.items() if yes is wanted] for wanted in (True, False))
    parts = {"accepted": accepted, "others": others}
    good = {limit: sum(one.worst_dice >= limit for one in accepted) for limit in limits}
    return {
        "judge": judge,
        "accepted": asdict(Share.counted(len(accepted), len(said))),
        "good": {f"{limit:g}": asdict(Share.counted(count, len(accepted))) for limit, count in good.items()},
        "dice": {part: _spread(one.dice for one in cases) for part, cases in parts.items()},
        "hd95_mm": {part: _spread(one.hd95_mm for one in cases) for part, cases in parts.items()},
    }


def _spread(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample) over the cases that have a value; None where there are too few."""
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    return {"n": len(known), "mean": mean, "std": float(np.std(known, ddof=1)) if len(known) > 1 else None}
