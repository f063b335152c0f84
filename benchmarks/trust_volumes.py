"""Intervals round volumes: how often they hold, by kind of case, and how wide they are against a constant one.

Called by :mod:`benchmarks.bench_trust`, on the rows of :mod:`benchmarks.trust_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.trust_figures import coverage, importance, is_flagged, is_shipped, limits
from benchmarks.trust_scores import Row
from medseg.trust.calibration import FitOptions
from medseg.trust.volume_interval import VolumeInterval, fit_volume_interval


def fitted(
    rows: Sequence[Row], names: Mapping[int, str], sha256: str, *, constant: bool = False, own: bool = False
) -> VolumeInterval:
    """What is fitted on results that are not flagged; on request of constant width, or on the network's own alone."""
    over = limits(rows)
    used = [row for row in rows if row["kind"] == "own" or not own]
    features = [] if constant else [name for name in used[0]["scores"] if is_shipped(name)]
    return fit_volume_interval(
        {name: [row["scores"][name] for row in used] for name in features},
        {label: [None if is_flagged(row, over) else row["log_ratio"][str(label)] for row in used] for label in names},
        names,
        [row["patient"] for row in used],
        sha256,
        FitOptions().coverage,
        importance(used),
    )


def summary(rows: Sequence[Row], names: Mapping[int, str]) -> dict[str, Any]:
    """Every part by intervals of the others, as they ship, of constant width, and constant from own results alone."""
    ways: dict[str, dict[str, Any]] = {
        "as fitted": {},
        "constant": {"constant": True},
        "constant, of own results": {"constant": True, "own": True},
    }
    found: dict[str, list[tuple[str, str, bool, float]]] = {way: [] for way in ways}
    kept: list[str] = []
    without = 0
    for part in sorted({row["part"] for row in rows}):
        others, tried = ([row for row in rows if (row["part"] == part) == is_in] for is_in in (False, True))
        over = limits(others)
        for way, how in ways.items():
            intervals = fitted(others, names, "cross-fitted", **how)
            kept += [one.describe() for one in intervals.structures] if way == "as fitted" else []
            for row in tried:
                for label in names:
                    ratio = row["log_ratio"][str(label)]
                    if ratio is None or is_flagged(row, over):
                        without += way == "as fitted"
                    elif (factors := intervals.factors(label, row["scores"])) is not None:
                        held, width = factors.low <= math.exp(ratio) <= factors.high, factors.high - factors.low
                        found[way].append((row["kind"], row["patient"], held, width))
    return {"kept": kept, "without": without} | {way: _told(values) for way, values in found.items()}


def _told(values: Sequence[tuple[str, str, bool, float]]) -> dict[str, Any]:
    """Coverage with its interval over patients, and mean width in shares of what was found; of all, and by kind."""
    groups = {"all": values, "worsened": [one for one in values if one[0] != "own"]}
    groups |= {kind: [one for one in values if one[0] == kind] for kind in sorted({one[0] for one in values})}
    told = {}
    for name, group in groups.items():
        held = np.array([one[2] for one in group], dtype=np.float64)
        shares = coverage(held, np.ones(len(held)), [one[1] for one in group]) if group else {}
        told[name] = {"n": len(group), **shares, "width": float(np.mean([one[3] for one in group])) if group else None}
    return told
