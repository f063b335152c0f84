"""The report's summary: counts, averages per structure, and what was not done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from medseg.evaluation.definitions import metric_named
from medseg.evaluation.report.collect import Study
from medseg.evaluation.report.reasons import remedy
from medseg.evaluation.report.style import number
from medseg.evaluation.statistics import Bootstrap, by_structure, summarise, summarise_structures

__all__ = ["not_done", "structure_table", "tiles", "unpaired", "verdict_counts"]

_MEASURED = ("dice", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml")


def tiles(study: Study) -> list[dict[str, str]]:
    """Figures at the top of the page: what, how many, and in which tone."""
    status = Counter(case.status for case in study.cases)
    found = [
        _tile(
            str(status["done"]), "done" if study.run else "cases", f"of {len(study.cases)} cases" if study.run else ""
        )
    ]
    found += [_tile(str(status[s]), s, tone=tone) for s, tone in (("refused", "mid"), ("failed", "bad")) if status[s]]
    flagged = sum(bool(case.flags) for case in study.cases)
    if flagged:
        unlike = sum("unlike-training" in case.flags for case in study.cases)
        found.append(_tile(str(flagged), "flagged", f"{unlike} unlike the training" if unlike else "", "bad"))
    if study.measured:
        found += _measured_tiles(study)
    seconds = [case.seconds for case in study.cases if case.seconds is not None and case.status == "done"]
    if seconds:
        found.append(_tile(f"{np.median(seconds):.3g} s", "per case", "median"))
    return found


def _measured_tiles(study: Study) -> list[dict[str, str]]:
    results = [s for case in study.cases for s in case.structures]
    dice = [d for case in study.cases for d in case.dice]
    missed, invented = sum(s.missed for s in results), sum(s.invented for s in results)
    mean = [_tile(f"{np.mean(dice):.3f}", "mean Dice", "a miss counts as 0")] if dice else []
    return [
        *mean,
        _tile(str(missed), "missed", "structures only in the reference", "bad" if missed else "good"),
        _tile(str(invented), "invented", "structures only in the prediction", "bad" if invented else "good"),
    ]


def _tile(figure: str, what: str, note: str = "", tone: str = "") -> dict[str, str]:
    return {"figure": figure, "what": what, "note": note, "tone": tone}


def verdict_counts(study: Study) -> list[dict[str, Any]]:
    """How many cases trust accepts, wants reviewed, or rejects; empty if trust was not asked."""
    counts = Counter(case.verdict for case in study.cases if case.verdict)
    return [{"name": name, "count": counts[name]} for name in ("accept", "review", "reject")] if counts else []


def not_done(study: Study) -> list[dict[str, Any]]:
    """Reasons why cases were refused or failed, the most frequent first, each with its remedy."""
    counts = Counter((case.reason or case.status) for case in study.cases if case.status != "done")
    groups = []
    for reason, count in counts.most_common():
        meaning, action = remedy(reason)
        groups.append({"reason": reason, "count": count, "meaning": meaning, "action": action})
    return groups


def unpaired(study: Study) -> str:
    """Sentence about files without a partner; empty if there are none."""
    count = study.metrics.get("n_unpaired")
    if not isinstance(count, int) or not count:
        return ""
    subject = "One file has" if count == 1 else f"{count} files have"
    return f"{subject} no partner and could not be evaluated; metrics.json lists what is missing."


def structure_table(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Column titles, and one row per structure; the numbers are those of ``metrics.json`` where it has them."""
    summaries = _summaries(study)
    wanted = _MEASURED if study.measured else ("volume_ml",)
    columns = [m for m in wanted if any(_has(s["metrics"].get(m)) for s in summaries.values())]
    rows = []
    for name, summary in sorted(summaries.items(), key=lambda item: item[1].get("label", 0)):
        cells = [_cell(summary["metrics"].get(metric), metric) for metric in columns]
        counts = {"n": summary.get("n"), "missed": summary.get("n_missed", 0), "invented": summary.get("n_invented", 0)}
        rows.append({"label": summary.get("label"), "name": name, "cells": cells, **counts})
    return [metric_named(metric).title for metric in columns], rows


def _summaries(study: Study) -> dict[str, dict[str, Any]]:
    written = study.metrics.get("structures")
    if isinstance(written, Mapping) and written:
        return {
            str(name): dict(value)
            for name, value in written.items()
            if isinstance(value, Mapping) and "metrics" in value
        }
    results = [s for case in study.cases for s in case.structures]
    if study.measured:
        return summarise_structures(results, {}, Bootstrap())
    found = {}
    for (label, name), rows in by_structure(results).items():
        volumes = np.array([[v] for row in rows if (v := row.values.get("volume_ml")) is not None], dtype=np.float64)
        volume = (
            summarise(volumes, [row.case_id for row in rows][: len(volumes)], Bootstrap())[0] if len(volumes) else None
        )
        found[name] = {"label": label, "n": len(rows), "metrics": {"volume_ml": volume.as_json()} if volume else {}}
    return found


def _has(summary: object) -> bool:
    return isinstance(summary, Mapping) and summary.get("mean") is not None


def _cell(summary: Mapping[str, Any] | None, metric: str) -> dict[str, str] | None:
    if summary is None or summary.get("mean") is None:
        return None
    interval = summary.get("ci95")
    return {
        "mean": number(summary["mean"], metric),
        "std": number(summary.get("std"), metric).removeprefix("+"),
        "median": number(summary.get("median"), metric),
        "interval": f"{number(interval[0], metric)} to {number(interval[1], metric)}" if interval else "",
    }
