"""Every table of the report, as columns: head, value, format; and what a refusal means and what helps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_METRICS, metric_named
from medseg.evaluation.statistics import Bootstrap, by_structure, summarise, summarise_structures
from medseg.pictures import colour, rgb
from medseg.report.collect import Case, Study
from medseg.report.remedies import remedy
from medseg.results.verdict import NOT_CALIBRATED, UNLIKE_TRAINING, Interval, counted

_NOTHING = "–"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Cell:
    """What stands in one field of a table."""

    text: str = ""  # the value
    sort: str = ""  # what the table is sorted by; empty sorts last
    aside: str = ""  # what stands smaller behind the value
    notes: tuple[str, ...] = ()  # lines below
    pill: str = ""
    tone: str = ""
    """``pill``, ``tone``: a badge, and how it looks (``"bad"`` without a badge: the value itself)."""
    flags: tuple[str, ...] = ()  # what was flagged
    swatch: int | None = None  # label whose colour is shown in front


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column: its head, and the cell of a row; ``key`` names it for the page, ``first`` is its first order."""

    head: str
    cell: Callable[[Row], Cell]
    numeric: bool = True
    key: str = ""
    first: str = ""


@dataclass(frozen=True)
class Table:
    """A table as the template draws it."""

    columns: list[Column[Any]] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)


def table(columns: Iterable[Column[Row]], rows: Iterable[Row]) -> Table:
    """Fill a table: every column of every row."""
    columns = list(columns)
    return Table(columns, [[column.cell(row) for column in columns] for row in rows])


def number(value: float | None, metric: str) -> str:
    """A value with the digits that its unit deserves: three for scores, two for mm, three significant for ml."""
    if value is None:
        return _NOTHING
    if not metric.endswith("_ml"):
        return f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"
    sign = "+" if metric == "volume_difference_ml" and value > 0 else ""
    decimals = next((d for limit, d in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if abs(value) >= limit), 4)
    return f"{sign}{value:.{decimals if value else 0}f}".replace("-", "−")


def label_table(names: Mapping[int, str]) -> str:
    """Label colours for the viewer, as JSON that is safe inside a script element; above 255 they share one."""
    entries: dict[int, tuple[str, str]] = {0: ("#000000", "background")}
    for index, (label, name) in enumerate(names.items()):
        entries[min(label, 255)] = (colour(index), name)
    value = {
        **{channel: [rgb(c)[place] for c, _ in entries.values()] for place, channel in enumerate("RGB")},
        "A": [0] + [255] * (len(entries) - 1),
        "I": list(entries),
        "labels": [name for _, name in entries.values()],
    }
    return json.dumps(value).replace("<", "\\u003c").replace("&", "\\u0026")


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page: what it counts, a note below, and in which tone."""

    figure: str
    what: str
    note: str = ""
    tone: str = ""


def tiles(study: Study) -> list[Tile]:
    """The figures of all cases together."""
    status = Counter(case.status for case in study.cases)
    of = f"of {len(study.cases)} cases" if study.of_run else ""
    found = [Tile(str(status["done"]), "done" if study.of_run else "cases", of)]
    found += [Tile(str(status[s]), s, tone=tone) for s, tone in (("refused", "mid"), ("failed", "bad")) if status[s]]
    flagged = sum(bool(case.flags) for case in study.cases)
    if flagged:
        unlike = sum(UNLIKE_TRAINING in case.flags for case in study.cases)
        found.append(Tile(str(flagged), "flagged", f"{unlike} unlike the training" if unlike else "", "bad"))
    if study.measured:
        dice = [d for case in study.cases for d in case.dice]
        found += [Tile(f"{np.mean(dice):.3f}", "mean Dice", "a miss counts as 0")] if dice else []
        for flag, where in (("missed", "reference"), ("invented", "prediction")):
            count = sum(s.missed if flag == "missed" else s.invented for s in study.structures)
            found.append(Tile(str(count), flag, f"structures only in the {where}", "bad" if count else "good"))
    seconds = [case.seconds for case in study.cases if case.seconds is not None and case.status == "done"]
    return [*found, Tile(f"{np.median(seconds):.3g} s", "per case", "median")] if seconds else found


def verdict_counts(study: Study) -> dict[str, int]:
    """How many cases trust accepts, wants reviewed, rejects; empty without trust."""
    judged = [case.verdict for case in study.cases if case.verdict]
    return counted(judged) if judged else {}


def not_done(study: Study) -> Table:
    """Reasons why cases were refused or failed, the most frequent first, each with its remedy."""
    counts = Counter((case.reason or case.status) for case in study.cases if case.status != "done")
    columns: list[Column[tuple[str, int]]] = [
        Column("Reason", lambda row: Cell(row[0]), numeric=False),
        Column("Cases", lambda row: Cell(str(row[1]))),
        Column("What it means", lambda row: Cell(remedy(row[0])[0]), numeric=False),
        Column("What to do", lambda row: Cell(remedy(row[0])[1]), numeric=False),
    ]
    return table(columns, counts.most_common())


_MEASURED = ("dice", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml")
_Summaries = Mapping[str, Any]
"""An entry of ``structures`` in ``metrics.json``."""


def structure_table(study: Study) -> Table:
    """One row per structure; the numbers are those of ``metrics.json`` where it has them."""
    rows = sorted(_summaries(study).items(), key=lambda item: item[1].get("label", 0))
    columns: list[Column[tuple[str, _Summaries]]] = [
        Column("Structure", lambda row: Cell(row[0], swatch=row[1].get("label")), numeric=False),
        Column("Cases", lambda row: Cell(str(row[1].get("n")))),
    ]
    if study.measured:
        columns += [Column("Missed", lambda row: _count(row[1], "n_missed"))]
        columns += [Column("Invented", lambda row: _count(row[1], "n_invented"))]
    for metric in _MEASURED if study.measured else ("volume_ml",):
        if any(_mean(row, metric) is not None for row in rows):
            columns.append(Column(metric_named(metric).title, partial(_averaged, metric=metric)))
    return table(columns, rows)


def _summaries(study: Study) -> dict[str, _Summaries]:
    if study.summaries:
        return dict(study.summaries)
    if study.measured:
        return dict(summarise_structures(study.structures, {}, Bootstrap()))
    found: dict[str, _Summaries] = {}
    for (label, name), rows in by_structure(study.structures).items():
        known = [(row.case_id, v) for row in rows if (v := row.values.get("volume_ml")) is not None]
        volumes = np.array([[v] for _, v in known], dtype=np.float64).reshape(-1, 1)
        volume = asdict(summarise(volumes, [case_id for case_id, _ in known], Bootstrap())[0])
        found[name] = {"label": label, "n": len(rows), "metrics": {"volume_ml": volume}}
    return found


def _mean(row: tuple[str, _Summaries], metric: str) -> float | None:
    return (row[1]["metrics"].get(metric) or {}).get("mean")


def _count(summary: _Summaries, key: str) -> Cell:
    return Cell(str(summary.get(key, 0)), tone="bad" if summary.get(key) else "")


def _averaged(row: tuple[str, _Summaries], metric: str) -> Cell:
    return averaged(row[1]["metrics"].get(metric), metric)


def averaged(summary: _Summaries | None, metric: str) -> Cell:
    """A mean ± its standard deviation, with its interval and the median below; a dash where nothing is known."""
    if not summary or (mean := summary.get("mean")) is None:
        return Cell(_NOTHING)
    std = number(summary.get("std"), metric).removeprefix("+")
    low_high = " to ".join(number(limit, metric) for limit in summary.get("ci95") or ())
    notes = (*([low_high] if low_high else []), f"median {number(summary.get('median'), metric)}")
    return Cell(number(mean, metric), aside=f"± {std}", notes=notes)


_VERDICT_ORDER = {"reject": "0", "review": "1", NOT_CALIBRATED: "2", "accept": "3"}


def case_table(study: Study) -> Table:
    """One row per case, worst first; only the columns that this study can fill."""
    columns: list[Column[Case]] = [Column("Case", lambda case: Cell(case.case_id, case.case_id), False, "case")]
    if any(case.status != "done" for case in study.cases):
        columns.append(
            Column(
                "Status",
                lambda case: Cell("", case.status, pill=case.status, tone=case.status),
                False,
                "status",
                "descending",
            )
        )
    if any(case.verdict for case in study.cases):
        columns.append(Column("Trust", _verdict, False, "verdict"))
    if any(case.assessed for case in study.cases):
        columns.append(Column("Predicted Dice", _predicted, key="predicted"))
    if any(case.discriminator for case in study.cases):
        columns.append(Column("Discriminator", _taken_for_real, False, "discriminator"))
    if study.measured:
        columns += [
            Column("Worst Dice", _worst_dice, key="dice"),
            Column(
                "Mean Dice",
                lambda case: _figure(sum(case.dice) / len(case.dice) if case.dice else None, "dice"),
                key="mean",
            ),
            Column("HD95 [mm]", _distance, key="hd95", first="descending"),
        ]
    columns.append(Column("Volume [ml]", _volume, key="volume", first="descending"))
    return table(columns, study.cases)


def metric_columns(study: Study) -> list[str]:
    """Metrics for which some structure of some case has a value."""
    return [m for m in CSV_METRICS if any(s.values.get(m) is not None for s in study.structures)]


def structures_of_case(case: Case, study: Study) -> Table:
    """One row per structure of a case: estimates and every metric."""

    estimates = {quality.label: quality for quality in case.assessed}

    def estimate(row: StructureResult) -> Cell:
        found = estimates.get(row.label)
        return Cell(_NOTHING if found is None else f"{found.predicted_dice:.3f} (at least {found.lower_bound:.2f})")

    columns: list[Column[StructureResult]] = [
        Column("Structure", lambda row: Cell(row.name, swatch=row.label, pill=flag_of(row), tone="bad"), numeric=False)
    ]
    if any(other.assessed for other in study.cases):
        columns.append(Column("Predicted Dice", estimate))
    for metric in metric_columns(study):
        known = case.volumes if metric == "volume_ml" else {}
        columns.append(Column(metric_named(metric).title, partial(_value, metric=metric, known=known)))
    return table(columns, sorted(case.structures, key=lambda row: row.label))


def _value(structure: StructureResult, metric: str, known: Mapping[int, Interval]) -> Cell:
    """A figure, and behind it the interval that is ``known`` for the structure."""
    found = known.get(structure.label)
    aside = "" if found is None else f"{number(found.low, metric)} to {number(found.high, metric)}"
    return Cell(number(structure.values.get(metric), metric), aside=aside)


def flag_of(structure: StructureResult) -> str:
    """``missed``, ``invented`` or nothing."""
    return "missed" if structure.missed else "invented" if structure.invented else ""


def search_text(case: Case) -> str:
    """What the search field finds a case by."""
    learnt = ["trained-on"] if case.trained_on else []
    words = [case.case_id, case.status, case.reason, case.verdict, *case.flags, *learnt]
    return " ".join([*words, *(flag for s in case.structures if (flag := flag_of(s)))]).lower()


def message_of(case: Case) -> str:
    """What is said of a case, also of one that was not done and whose message cannot be shown."""
    if case.message or case.status == "done":
        return case.message
    return " ".join([*remedy(case.reason), "Details are in run.json."]).strip()


def _figure(value: float | None, metric: str, note: str = "") -> Cell:
    sort = "" if value is None else repr(float(value))
    return Cell(number(value, metric), sort, notes=(note,) if note else ())


def _verdict(case: Case) -> Cell:
    """Badge of the verdict and, below, what was flagged; flagged cases sort first within a verdict."""
    place = _VERDICT_ORDER.get(case.verdict, "")
    flags = tuple(flag.replace("-", " ") for flag in case.flags)
    return Cell(sort=place and place + str(int(not flags)), pill=case.verdict, tone=case.verdict, flags=flags)


def _predicted(case: Case) -> Cell:
    predicted, low = case.estimates
    return _figure(predicted, "dice", "" if low is None else f"at least {low:.2f}")


def _taken_for_real(case: Case) -> Cell:
    """Badge of the discriminator's decision and, below, the share of each structure that it takes for real."""
    if case.discriminator is None:
        return Cell(_NOTHING)
    known = [(one.name, one.share) for one in case.discriminator.structures if one.share is not None]
    least = min((one.share or 0.0 for one in case.discriminator.structures), default=0.0)
    decision = case.discriminator.decision
    notes = tuple(f"{name} {share:.0%} real" for name, share in known)
    return Cell(sort=f"{least:.4f}", pill=decision, tone=decision, notes=notes)


def _worst_dice(case: Case) -> Cell:
    scored = [(d, s.name) for s in case.structures if (d := s.values.get("dice")) is not None]
    value, name = min(scored, default=(None, ""))
    return _figure(value, "dice", name if len(case.structures) > 1 else "")


def _volume(case: Case) -> Cell:
    volumes = [v for s in case.structures if (v := s.values.get("volume_ml")) is not None]
    return _figure(sum(volumes) if volumes else None, "volume_ml")


def _distance(case: Case) -> Cell:
    """Worst distance; a missed or invented structure has none, so it is named and sorts above every distance."""
    values = [v for s in case.structures if (v := s.values.get("hd95_mm")) is not None]
    flags = Counter(flag for s in case.structures if (flag := flag_of(s)))
    note = ", ".join(f"{flags[flag]} {flag}" for flag in ("missed", "invented") if flags[flag])
    cell = _figure(max(values, default=None), "hd95_mm", note)
    return Cell(cell.text, "Infinity", notes=cell.notes) if flags else cell
