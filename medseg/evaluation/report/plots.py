"""Which plots a report shows, and what is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import metric_named
from medseg.evaluation.report.charts import Point, bland_altman, calibration, distribution, limits_of_agreement
from medseg.evaluation.report.collect import Case, Study
from medseg.evaluation.report.style import number
from medseg.evaluation.statistics import by_structure

__all__ = ["Chart", "Section", "sections"]

_MOST_PANELS = 12
_SCORES = ("dice", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class Chart:
    """One plot with its title and a remark below."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Plots under one heading."""

    anchor: str
    title: str
    lead: str
    layout: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class _Foretold:
    """Predicted and measured Dice of one structure, or of a case as a whole."""

    case_id: str
    structure: str
    predicted: float
    lower: float | None
    measured: float


def sections(study: Study) -> list[Section]:
    """All plots that the study has the numbers for."""
    groups = {name: rows for (_, name), rows in by_structure(s for c in study.cases for s in c.structures).items()}
    found = [
        _distributions(groups, _SCORES if study.measured else ("volume_ml",)),
        _agreement(groups) if study.measured else None,
        _trust(study),
    ]
    return [section for section in found if section is not None and section.charts]


def _distributions(groups: dict[str, list[StructureResult]], metrics: Sequence[str]) -> Section:
    charts = []
    for metric in metrics:
        rows = [(name, _points(results, metric)) for name, results in groups.items()]
        rows = [(name, points) for name, points in rows if points]
        if rows:
            lacking = sum(
                s.values.get(metric) is None and (s.missed or s.invented)
                for results in groups.values()
                for s in results
            )
            note = f"Not in this plot, since they have no distance: {lacking} missed or invented." if lacking else ""
            charts.append(Chart(metric_named(metric).title, distribution(rows, _unit(metric), _span(metric)), note))
    lead = (
        "Every dot is a case; red dots were missed or invented. Boxes show the quartiles. Click a dot to open its case."
    )
    return Section("distributions", "Distributions", lead, "wide", tuple(charts))


def _points(results: Sequence[StructureResult], metric: str) -> list[Point]:
    return [
        Point(v, 0.0, s.case_id, s.missed or s.invented) for s in results if (v := s.values.get(metric)) is not None
    ]


def _unit(metric: str) -> str:
    return " mm" if metric.endswith("_mm") else " ml" if metric.endswith("_ml") else ""


def _span(metric: str) -> tuple[float, float] | None:
    return (0.0, 1.0) if metric == "dice" else None


def _agreement(groups: dict[str, list[StructureResult]]) -> Section:
    charts = []
    for name, results in groups.items():
        points = _volume_pairs(results)
        if len(points) < 2:
            continue
        bias, low, high = (number(v, "volume_ml") for v in limits_of_agreement([p.y for p in points]))
        charts.append(
            (
                abs(np.mean([p.y for p in points])),
                Chart(name, bland_altman(points), f"bias {bias} ml, limits {low} to {high} ml"),
            )
        )
    shown = charts if len(charts) <= _MOST_PANELS else sorted(charts, key=lambda item: -item[0])[:_MOST_PANELS]
    lead = "Bland and Altman: solid, bias; dashed, 95 % limits of agreement (bias ± 1.96 standard deviations)."
    if len(shown) < len(charts):
        lead += f" Shown are the {len(shown)} structures of largest bias out of {len(charts)}."
    return Section("agreement", "Volume agreement", lead, "square", tuple(chart for _, chart in shown))


def _volume_pairs(results: Sequence[StructureResult]) -> list[Point]:
    points = []
    for s in results:
        ours, theirs = s.values.get("volume_ml"), s.values.get("reference_volume_ml")
        if not s.absent and ours is not None and theirs is not None:
            points.append(Point((ours + theirs) / 2, ours - theirs, s.case_id, s.missed or s.invented))
    return points


def _trust(study: Study) -> Section | None:
    predicted = [(case, case.predicted_dice) for case in study.cases if case.predicted_dice is not None]
    if not predicted:
        return None
    pairs = [pair for case, _ in predicted for pair in _foretold(case)]
    charts = [_calibration(pairs)] if len(pairs) > 1 else []
    rows = [
        (verdict, [Point(p, 0.0, c.case_id, bool(c.flags)) for c, p in predicted if c.verdict == verdict])
        for verdict in ("reject", "review", "accept")
    ]
    rows = [(verdict, points) for verdict, points in rows if points]
    if rows:
        note = "Red dots were flagged." if any(case.flags for case, _ in predicted) else ""
        charts.append(Chart("Predicted Dice by verdict", distribution(rows, "", (0.0, 1.0)), note))
    lead = "What trust foretold without a reference. On the dotted diagonal it is right, below it too hopeful."
    return Section(
        "trust", "Trust", lead if pairs else "What trust foretells without a reference.", "wide", tuple(charts)
    )


def _foretold(case: Case) -> list[_Foretold]:
    """Predicted and measured Dice of every structure; of the case as a whole where trust says no more."""
    measured = {s.label: (s.name, d) for s in case.structures if (d := s.values.get("dice")) is not None}
    if case.estimates:
        known = [(label, *pair) for label, pair in case.estimates.items() if label in measured]
        return [_Foretold(case.case_id, measured[k][0], p, low, measured[k][1]) for k, p, low in known]
    if case.predicted_dice is None or not case.dice:
        return []
    return [_Foretold(case.case_id, "", case.predicted_dice, case.lower_bound, sum(case.dice) / len(case.dice))]


def _calibration(pairs: Sequence[_Foretold]) -> Chart:
    points = [Point(p.predicted, p.measured, p.case_id, p.measured < 0.5) for p in pairs]
    error = float(np.mean([abs(p.predicted - p.measured) for p in pairs]))
    bounded = [p.measured >= p.lower for p in pairs if p.lower is not None]
    what = "structures" if any(p.structure for p in pairs) else "cases"
    covered = f"; {sum(bounded)} of {len(bounded)} {what} reach their lower bound" if bounded else ""
    note = f"mean absolute error {error:.3f}{covered}"
    return Chart("Predicted against measured Dice", calibration(points), note)
