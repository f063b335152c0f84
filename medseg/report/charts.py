"""Plots of the report as inline SVG, and what is said about them.

Plots of a report as inline SVG: coloured by the page's style sheet, so they follow light, dark and print.

Which plots a report shows, and what is said about them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import metric_named
from medseg.evaluation.statistics import by_structure
from medseg.report.collect import Case, Study
from medseg.report.tables import number

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 38.0


@dataclass(frozen=True)
class Point:
    """One case in a plot: where it lies, which case it is, and whether it is marked as a miss."""

    x: float
    y: float
    case_id: str
    marked: bool = False


@dataclass(frozen=True)
class _Scale:
    """Maps a range of values to a range of pixels."""

    values: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        share = (value - self.values[0]) / (self.values[1] - self.values[0])
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])


@dataclass(frozen=True)
class _Frame:
    """Maps values to pixels inside the axes."""

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        return _Scale(self.x, (_LEFT, self.width - _RIGHT))(value)

    def py(self, value: float) -> float:
        return _Scale(self.y, (self.height - _BOTTOM, _TOP))(value)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that span ``low`` to ``high`` (steps of 1, 2 or 5 times a power of ten)."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(wanted - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def distribution(
    rows: Sequence[tuple[str, Sequence[Point]]], unit: str, span: tuple[float, float] | None = None
) -> Markup:
    """Strip and box plot, one row per structure; ``Point.x`` is the value, ``Point.y`` is not used.

    Boxes show quartiles, whiskers the most extreme value within 1.5 interquartile ranges; every case is a dot.
    """
    values = [p.x for _, points in rows for p in points]
    if not values:
        return Markup("")
    ticks = nice_ticks(*(span or (min(values), max(values))), 6)
    start = min(max(60.0, 7.2 * max(len(name) for name, _ in rows) + 10), 200.0)
    width, row_px = 520.0, 34.0
    height = row_px * len(rows) + 44
    x = _Scale((ticks[0], ticks[-1]), (start, width - 14))
    parts = [_vertical(x(t), 4, height - 36, f"{t:g}") for t in ticks]
    for i, (name, points) in enumerate(rows):
        middle = 6 + row_px * (i + 0.5)
        parts.append(_row_name(name, start - 10, middle + 4))
        parts.append(_box([x(p.x) for p in points], middle))
        parts.extend(_dot(x(p.x), middle + _jitter(p.case_id) * 9, p, f"{p.x:.3g}{unit}") for p in points)
    named = f": {unit.strip()}" if unit.strip() else ""
    return _svg("".join(parts), (width, height), f"Distribution per structure{named}")


def limits_of_agreement(differences: Sequence[float]) -> tuple[float, float, float]:
    """Bias and 95 % limits of agreement, bias ± 1.96 standard deviations (Bland and Altman 1986)."""
    values = np.asarray(differences, dtype=np.float64)
    bias = float(values.mean())
    spread = 1.96 * float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return bias, bias - spread, bias + spread


def bland_altman(points: Sequence[Point], unit: str = "ml") -> Markup:
    """Bland–Altman plot: x is the mean of both volumes, y predicted minus reference."""
    bias, low, high = limits_of_agreement([p.y for p in points])
    ys, xs = [*(p.y for p in points), low, high, 0.0], [p.x for p in points]
    y_ticks, x_ticks = nice_ticks(min(ys), max(ys)), nice_ticks(min(xs), max(xs), 4)
    frame = _Frame(380.0, 260.0, (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [_axes(frame, x_ticks, y_ticks, f"mean of both ({unit})", f"predicted − reference ({unit})")]
    parts.append(_level(frame, 0.0, "zero"))
    for value, kind in ((bias, "bias"), (low, "limit"), (high, "limit")):
        parts.append(_level(frame, value, kind))
    parts.extend(_dot(frame.px(p.x), frame.py(p.y), p, f"{p.y:+.3g} {unit}") for p in points)
    return _svg(
        "".join(parts), (380, 260), f"Bland–Altman plot: bias {bias:.3g} {unit}, limits {low:.3g} to {high:.3g} {unit}"
    )


def calibration(points: Sequence[Point]) -> Markup:
    """Predicted Dice (x) against measured Dice (y); on the diagonal trust is right, below it too optimistic."""
    ticks = nice_ticks(0.0, 1.0, 6)
    frame = _Frame(380.0, 320.0, (0.0, 1.0), (0.0, 1.0))
    diagonal = _line("zero", (frame.px(0), frame.px(1)), (frame.py(0), frame.py(1)))
    parts = [_axes(frame, ticks, ticks, "predicted Dice", "measured Dice"), diagonal]
    parts.extend(_dot(frame.px(p.x), frame.py(p.y), p, f"predicted {p.x:.2f}, measured {p.y:.2f}") for p in points)
    return _svg("".join(parts), (380, 320), "Predicted against measured Dice")


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str) -> str:
    bottom = frame.height - _BOTTOM
    parts = [_vertical(frame.px(t), _TOP, bottom, f"{t:g}") for t in x_ticks]
    for t in y_ticks:
        y = frame.py(t)
        parts.append(_line("grid", (_LEFT, frame.width - _RIGHT), (y, y)))
        parts.append(f'<text class="tick-y" x="{_LEFT - 6}" y="{y + 4:.1f}">{t:g}</text>')
    centre_x, centre_y = (_LEFT + frame.width - _RIGHT) / 2, (_TOP + bottom) / 2
    parts.append(f'<text class="axis" x="{centre_x:.0f}" y="{frame.height - 4:.0f}">{_escape(x_name)}</text>')
    parts.append(f'<text class="axis" transform="translate(11 {centre_y:.0f}) rotate(-90)">{_escape(y_name)}</text>')
    return "".join(parts)


def _line(kind: str, x: tuple[float, float], y: tuple[float, float], title: str = "") -> str:
    told = f"<title>{_escape(title)}</title>" if title else ""
    return f'<line class="{kind}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}">{told}</line>'


def _vertical(x: float, top: float, bottom: float, text: str) -> str:
    return f'{_line("grid", (x, x), (top, bottom))}<text class="tick" x="{x:.1f}" y="{bottom + 15}">{text}</text>'


def _level(frame: _Frame, value: float, kind: str) -> str:
    y = frame.py(value)
    return _line(kind, (_LEFT, frame.width - _RIGHT), (y, y), f"{kind} {value:.3g}")


def _row_name(name: str, x: float, y: float) -> str:
    short = name if len(name) <= 26 else name[:25] + "…"
    return f'<text class="name" x="{x:.0f}" y="{y:.1f}">{_escape(short)}<title>{_escape(name)}</title></text>'


def _box(xs: Sequence[float], y: float) -> str:
    if len(xs) < 4:
        return ""
    q1, median, q3 = np.percentile(xs, (25, 50, 75))
    reach = 1.5 * (q3 - q1)
    low, high = min(v for v in xs if v >= q1 - reach), max(v for v in xs if v <= q3 + reach)
    box = f'<rect class="box" x="{q1:.1f}" y="{y - 11:.1f}" width="{max(q3 - q1, 1):.1f}" height="22" rx="3"/>'
    return _line("whisker", (low, high), (y, y)) + box + _line("median", (median, median), (y - 11, y + 11))


def _dot(x: float, y: float, point: Point, text: str) -> str:
    kind, radius = ("dot marked", 4) if point.marked else ("dot", 3)
    case_id = _escape(point.case_id)
    title = f"<title>{case_id}: {_escape(text)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" data-case="{case_id}">{title}</circle>'


def _jitter(case_id: str) -> float:
    """The same small offset in [−0.5, 0.5] for a case in every plot and at every writing."""
    return hashlib.sha256(case_id.encode()).digest()[0] / 255.0 - 0.5


def _svg(body: str, size: tuple[float, float], title: str) -> Markup:
    width, height = size
    head = (
        f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width * 1.15:.0f}px" aria-label="{_escape(title)}"'
    )
    return Markup(f'<svg class="chart" role="img" {head}>{body}</svg>')  # noqa: S704  its texts went through _escape


def _escape(text: str) -> str:
    return str(escape(text))


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
