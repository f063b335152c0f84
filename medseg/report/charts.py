"""Plots of the report as inline SVG, coloured by the page's style sheet so that they follow light, dark and print."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import metric_named
from medseg.evaluation.statistics import by_structure
from medseg.report.collect import Case, Study
from medseg.report.tables import number

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 38.0
_MOST_PANELS = 12
_MOST_DOTS = 30
_SCORES = ("dice", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class Point:
    """One case in a plot: where it lies, which case it is, and whether it is marked as a miss."""

    x: float
    y: float
    case_id: str
    marked: bool = False


@dataclass(frozen=True)
class Chart:
    """One plot with its title, a remark below, and the names of its curves."""

    title: str
    svg: Markup
    note: str = ""
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Plots under one heading."""

    anchor: str
    title: str
    lead: str
    layout: str
    charts: tuple[Chart, ...]


def sections(study: Study) -> list[Section]:
    """All plots that the study has the numbers for."""
    groups = {name: rows for (_, name), rows in by_structure(study.structures).items()}
    found = [
        _distributions(groups, _SCORES if study.measured else ("volume_ml",)),
        *([_agreement(groups)] if study.measured else []),
        _trust(study),
    ]
    return [section for section in found if section.charts]


def _distributions(groups: Mapping[str, Sequence[StructureResult]], metrics: Sequence[str]) -> Section:
    charts = []
    for metric in metrics:
        rows = [
            (name, [Point(v, 0.0, s.case_id, _wrong(s)) for s in results if (v := s.values.get(metric)) is not None])
            for name, results in groups.items()
        ]
        if rows := [(name, points) for name, points in rows if points]:
            lacking = sum(s.values.get(metric) is None and _wrong(s) for rows_ in groups.values() for s in rows_)
            note = f"Not in this plot, since they have no distance: {lacking} missed or invented." if lacking else ""
            unit = " mm" if metric.endswith("_mm") else " ml" if metric.endswith("_ml") else ""
            span = (0.0, 1.0) if metric == "dice" else None
            charts.append(Chart(metric_named(metric).title, distribution(rows, unit, span), note))
    lead = (
        "Every dot is a case; red dots were missed or invented. Boxes show the quartiles. Click a dot to open its case."
    )
    return Section("distributions", "Distributions", lead, "wide", tuple(charts))


def _wrong(structure: StructureResult) -> bool:
    return structure.missed or structure.invented


def _agreement(groups: Mapping[str, Sequence[StructureResult]]) -> Section:
    charts: list[tuple[float, Chart]] = []
    for name, results in groups.items():
        pairs = [(s, s.values.get("volume_ml"), s.values.get("reference_volume_ml")) for s in results if not s.absent]
        points = [
            Point((ours + theirs) / 2, ours - theirs, s.case_id, _wrong(s))
            for s, ours, theirs in pairs
            if ours is not None and theirs is not None
        ]
        if len(points) > 1:
            limits = limits_of_agreement([p.y for p in points])
            bias, low, high = (number(v, "volume_ml") for v in limits)
            note = f"bias {bias} ml, limits {low} to {high} ml"
            charts.append((abs(limits[0]), Chart(name, bland_altman(points), note)))
    shown = charts if len(charts) <= _MOST_PANELS else sorted(charts, key=lambda item: -item[0])[:_MOST_PANELS]
    lead = "Bland and Altman: solid, bias; dashed, 95 % limits of agreement (bias ± 1.96 standard deviations)."
    if len(shown) < len(charts):
        lead += f" Shown are the {len(shown)} structures of largest bias out of {len(charts)}."
    return Section("agreement", "Volume agreement", lead, "square", tuple(chart for _, chart in shown))


def _trust(study: Study) -> Section:
    predicted = [(case, dice) for case in study.cases if (dice := case.estimates[0]) is not None]
    pairs = [pair for case, _ in predicted for pair in _foretold(case)]
    charts = [_calibration(pairs)] if len(pairs) > 1 else []
    rows = [
        (verdict, [Point(p, 0.0, c.case_id, bool(c.flags)) for c, p in predicted if c.verdict == verdict])
        for verdict in ("reject", "review", "accept")
    ]
    if rows := [(verdict, points) for verdict, points in rows if points]:
        note = "Red dots were flagged." if any(case.flags for case, _ in predicted) else ""
        charts.append(Chart("Predicted Dice by verdict", distribution(rows, "", (0.0, 1.0)), note))
    lead = "What trust foretells without a reference."
    if pairs:
        lead = "What trust foretold without a reference. On the dotted diagonal it is right, below it too hopeful."
    return Section("trust", "Trust", lead, "wide", tuple(charts))


def _foretold(case: Case) -> list[tuple[Point, bool]]:
    """Predicted against measured Dice of every structure, and whether the latter reaches its lower bound."""
    measured = {s.label: d for s in case.structures if (d := s.values.get("dice")) is not None}
    return [
        (Point(quality.predicted_dice, dice, case.case_id, dice < 0.5), dice >= quality.lower_bound)
        for quality in case.assessed
        if (dice := measured.get(quality.label)) is not None
    ]


def _calibration(pairs: Sequence[tuple[Point, bool]]) -> Chart:
    points = [point for point, _ in pairs]
    error = float(np.mean([abs(point.x - point.y) for point in points]))
    reached = sum(reaches for _, reaches in pairs)
    note = f"mean absolute error {error:.3f}; {reached} of {len(pairs)} structures reach their lower bound"
    return Chart("Predicted against measured Dice", calibration(points), note)


@dataclass(frozen=True)
class _Frame:
    """Maps values to pixels inside the axes."""

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        return _scaled(value, self.x, (_LEFT, self.width - _RIGHT))

    def py(self, value: float) -> float:
        return _scaled(value, self.y, (self.height - _BOTTOM, _TOP))


def _scaled(value: float, values: tuple[float, float], pixels: tuple[float, float]) -> float:
    return pixels[0] + (value - values[0]) / (values[1] - values[0]) * (pixels[1] - pixels[0])


def nice_ticks(low: float, high: float, number_of_ticks: int = 5) -> list[float]:
    """Round numbers that span ``low`` to ``high`` (steps of 1, 2 or 5 times a power of ten)."""
    largest = max(abs(low), abs(high), 1e-300)
    if high - low <= 1e-9 * largest:
        around = max(0.5, 1e-6 * largest)  # half a unit is nothing beside what is very large
        low, high = low - around, high + around
    rough = (high - low) / max(number_of_ticks - 1, 1)
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
    ticks = nice_ticks(*(span or (min(values), max(values))), 6)
    start = min(max(60.0, 7.2 * max(len(name) for name, _ in rows) + 10), 200.0)
    width, row_px = 520.0, 34.0
    height = row_px * len(rows) + 44

    def x(value: float) -> float:
        return _scaled(value, (ticks[0], ticks[-1]), (start, width - 14))

    parts = [_vertical(x(t), 4, height - 36, f"{t:g}") for t in ticks]
    for i, (name, points) in enumerate(rows):
        middle = 6 + row_px * (i + 0.5)
        short = name if len(name) <= 26 else name[:25] + "…"
        parts.append(
            f'<text class="name" x="{start - 10:.0f}" y="{middle + 4:.1f}">{escape(short)}<title>{escape(name)}</title>'
            "</text>"
        )
        parts.append(_box([x(p.x) for p in points], middle))
        parts.extend(_dot(x(p.x), middle + _jitter(p.case_id) * 9, p, f"{p.x:.3g}{unit}") for p in points)
    named = f": {unit.strip()}" if unit.strip() else ""
    return _svg(parts, (width, height), f"Distribution per structure{named}")


def limits_of_agreement(differences: Sequence[float]) -> tuple[float, float, float]:
    """Bias and 95 % limits of agreement, bias ± 1.96 standard deviations (Bland and Altman 1986)."""
    values = np.asarray(differences, dtype=np.float64)
    bias = float(values.mean())
    spread = 1.96 * float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return bias, bias - spread, bias + spread


def bland_altman(points: Sequence[Point]) -> Markup:
    """Bland–Altman plot: x is the mean of both volumes, y predicted minus reference, in ml."""
    bias, low, high = limits_of_agreement([p.y for p in points])
    ys, xs = [*(p.y for p in points), low, high, 0.0], [p.x for p in points]
    y_ticks, x_ticks = nice_ticks(min(ys), max(ys)), nice_ticks(min(xs), max(xs), 4)
    frame = _Frame(380.0, 260.0, (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [_axes(frame, x_ticks, y_ticks, "mean of both (ml)", "predicted − reference (ml)")]
    for value, kind in ((0.0, "zero"), (bias, "bias"), (low, "limit"), (high, "limit")):
        ends = (_LEFT, frame.width - _RIGHT)
        parts.append(_line(kind, ends, (frame.py(value), frame.py(value)), f"{kind} {value:.3g}"))
    parts.extend(_dot(frame.px(p.x), frame.py(p.y), p, f"{p.y:+.3g} ml") for p in points)
    return _svg(parts, (380, 260), f"Bland–Altman plot: bias {bias:.3g} ml, limits {low:.3g} to {high:.3g} ml")


def calibration(points: Sequence[Point]) -> Markup:
    """Predicted Dice (x) against measured Dice (y); on the diagonal trust is right, below it too optimistic."""
    ticks = nice_ticks(0.0, 1.0, 6)
    frame = _Frame(380.0, 320.0, (0.0, 1.0), (0.0, 1.0))
    diagonal = _line("zero", (frame.px(0), frame.px(1)), (frame.py(0), frame.py(1)))
    parts = [_axes(frame, ticks, ticks, "predicted Dice", "measured Dice"), diagonal]
    parts.extend(_dot(frame.px(p.x), frame.py(p.y), p, f"predicted {p.x:.2f}, measured {p.y:.2f}") for p in points)
    return _svg(parts, (380, 320), "Predicted against measured Dice")


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], x_name: str = "epoch") -> Chart:
    """Values over epochs, one curve per name; single values are dots."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    y_ticks, x_ticks = nice_ticks(min(ys), max(ys)), [t for t in nice_ticks(min(xs), max(xs), 6) if t == int(t)]
    frame = _Frame(520.0, 260.0, (min(xs) - 0.5, max(xs) + 0.5), (y_ticks[0], y_ticks[-1]))
    parts = [_axes(frame, [t for t in x_ticks if frame.x[0] <= t <= frame.x[1]], y_ticks, x_name, "")]
    for i, (name, points) in enumerate(series.items()):
        places = [(frame.px(x), frame.py(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="curve s{i}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) <= _MOST_DOTS:
            values = zip(places, points, strict=True)
            texts = ((x, y, escape(f"{name}, {x_name} {at:g}: {value:.4g}")) for (x, y), (at, value) in values)
            dot = '<circle class="knot s{}" cx="{:.1f}" cy="{:.1f}" r="2.6"><title>{}</title></circle>'
            parts.extend(dot.format(i, x, y, text) for x, y, text in texts)
    return Chart(title, _svg(parts, (520, 260), f"{title} over {x_name}s"), legend=tuple(series))


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str) -> str:
    bottom = frame.height - _BOTTOM
    parts = [_vertical(frame.px(t), _TOP, bottom, f"{t:g}") for t in x_ticks]
    for t in y_ticks:
        y = frame.py(t)
        parts.append(_line("grid", (_LEFT, frame.width - _RIGHT), (y, y)))
        parts.append(f'<text class="tick-y" x="{_LEFT - 6}" y="{y + 4:.1f}">{t:g}</text>')
    centre_x, centre_y = (_LEFT + frame.width - _RIGHT) / 2, (_TOP + bottom) / 2
    parts.append(f'<text class="axis" x="{centre_x:.0f}" y="{frame.height - 4:.0f}">{escape(x_name)}</text>')
    parts.append(f'<text class="axis" transform="translate(11 {centre_y:.0f}) rotate(-90)">{escape(y_name)}</text>')
    return "".join(parts)


def _line(kind: str, x: tuple[float, float], y: tuple[float, float], title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{kind}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}">{inner}</line>'


def _vertical(x: float, top: float, bottom: float, text: str) -> str:
    return f'{_line("grid", (x, x), (top, bottom))}<text class="tick" x="{x:.1f}" y="{bottom + 15}">{text}</text>'


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
    case_id = escape(point.case_id)
    title = f"<title>{case_id}: {escape(text)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" data-case="{case_id}">{title}</circle>'


def _jitter(case_id: str) -> float:
    """The same small offset in [−0.5, 0.5] for a case in every plot and at every writing."""
    return hashlib.sha256(case_id.encode()).digest()[0] / 255.0 - 0.5


def _svg(parts: Sequence[str], size: tuple[float, float], title: str) -> Markup:
    width, height = size
    head = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width * 1.15:.0f}px" aria-label="{escape(title)}"'
    return Markup(f'<svg class="chart" role="img" {head}>{"".join(parts)}</svg>')  # noqa: S704  its texts were escaped
