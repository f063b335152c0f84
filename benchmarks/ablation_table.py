"""The ablation in figures: what was measured per case, means over draws, paired tests; what is not measured is said.

    python -m benchmarks.ablation_table benchmarks/results [--docs docs/benchmarks.md]

The table comes from two files that ``benchmarks.ablation`` keeps: ``ablation.csv`` (one row per run, case and
structure) and ``ablation_runs.csv`` (what each run has cost). With ``--docs`` it replaces the one in that file.

Tests are Wilcoxon's, per patient (mean over structures and the draws that both sides have), with Holm's correction over
all tests with as many labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import cc3d
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medseg.evaluation import StructureResult, evaluate_case
from medseg.evaluation.statistics import compare, holm
from medseg.files import write_text
from medseg.tables import read_table, table_text

DESIGN = {10: 3, 50: 1, 0: 1}
"""Labelled cases (0: all) → draws."""
BASE = "plain"
ARMS = (BASE, "D 10 %", "D 30 %", "D on unlabelled images", "restoring U-Net + D", "restoring U-Net")
AGAINST = {"restoring U-Net + D": "restoring U-Net"}
"""What an arm is compared with beside plain training."""
DISTANCES = ("hd95_mm", "assd_mm")
TOPOLOGY = ("extra_components", "holes")
METRICS = ("dice", *DISTANCES, *TOPOLOGY)
NOT_MEASURED = "not measured"

Key = tuple[str, int, int]
"""Variant, labels (0: all), draw."""


@dataclass(frozen=True)
class Measured:
    """One structure of one held-out case, segmented by the network of one run."""

    variant: str
    labels: int
    draw: int
    case_id: str
    label: int
    dice: float
    hd95_mm: float | None  # None if the structure was missed
    assd_mm: float | None
    extra_components: int  # beyond the first
    holes: int


@dataclass(frozen=True)
class RunFacts:
    """What one run was, what it has cost, and how its discriminator judges the held-out cases at its end."""

    variant: str
    labels: int
    draw: int
    iterations: int  # of plain training
    batch_size: int
    cpu_seconds: float  # of the training
    step_seconds: float  # of one step, when all parts take part
    true_is_real: float | None  # share of the true segmentations that it takes for real
    true_above_wrong: float | None  # share in which it prefers the true one to a wrong one, of the worst kind

    @property
    def key(self) -> Key:
        return self.variant, self.labels, self.draw


@dataclass(frozen=True)
class Results:
    """All finished runs."""

    runs: list[RunFacts] = field(default_factory=list)
    rows: list[Measured] = field(default_factory=list)

    @property
    def finished(self) -> set[Key]:
        return {run.key for run in self.runs}

    def joined(self, other: Results) -> Results:
        return Results([*self.runs, *other.runs], [*self.rows, *other.rows])

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls([RunFacts(**run) for run in content["runs"]], [Measured(**row) for row in content["rows"]])

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From the two tables in a folder; nothing if there are none."""
        if not (folder / "ablation.csv").exists():
            return cls()
        runs = [RunFacts(**_values(cells)) for cells in read_table(folder / "ablation_runs.csv").rows]
        return cls(runs, [Measured(**_values(cells)) for cells in read_table(folder / "ablation.csv").rows])

    def write(self, folder: Path) -> None:
        """As :meth:`read` reads it; the runs last, for what stands there is finished."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, kind, records in (("", Measured, self.rows), ("_runs", RunFacts, self.runs)):
            head = [one.name for one in fields(kind)]
            write_text(folder / f"ablation{name}.csv", table_text([head, *map(astuple, records)]))


def _values(cells: Mapping[str, str]) -> dict[str, Any]:
    """The values of a row: names stay texts, an empty cell is None."""
    return {name: text if name in ("variant", "case_id") else _number(text) for name, text in cells.items()}


def _number(text: str) -> float | None:
    return None if not text else float(text) if "." in text else int(text)


def topology(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Components beyond the first (26 neighbours), and cavities (components of the outside, 6 neighbours)."""
    components = int(cc3d.connected_components(mask.astype(np.uint8), connectivity=26, return_N=True)[1])
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    cavities = int(cc3d.connected_components(outside, connectivity=6, return_N=True)[1]) - 1
    return max(0, components - 1), cavities


def measure_case(key: Key, item: Mapping[str, Any], predictions: Path, labels: Mapping[int, str]) -> list[Measured]:
    """One row per structure, from the saved label map."""
    name = Path(item["image"]).name.removesuffix(".nii.gz")
    reference = nib.load(item["label"])
    truth = np.asarray(reference.dataobj).astype(np.uint8)
    found = np.asarray(nib.load(predictions / f"{name}_seg.nii.gz").dataobj).astype(np.uint8)
    spacing_mm = tuple(float(s) for s in reference.header.get_zooms()[:3])
    rows = []
    for result in evaluate_case(found, truth, spacing_mm, labels):
        dice, *distances = (result.values[metric] for metric in ("dice", *DISTANCES))
        hd95_mm, assd_mm = (None if distance is None else round(distance, 3) for distance in distances)
        extra, holes = topology(found == result.label)
        rows.append(Measured(*key, name, result.label, round(dice or 0.0, 4), hd95_mm, assd_mm, extra, holes))
    return rows


@dataclass(frozen=True)
class Comparison:
    """One arm against another with the same labels, in one metric; differences are arm − base."""

    labels: int
    arm: str
    base: str
    metric: str
    draws: tuple[int, ...]  # those that both have
    difference: float
    p: float
    interval: tuple[float, float] | None = None  # 95 %, over patients
    by_draw: tuple[float, ...] = ()
    p_holm: float = 1.0


def comparisons(labels: int, rows: Sequence[Measured]) -> list[Comparison]:
    """Every arm against plain training (and :data:`AGAINST`) with as many labels, corrected together."""
    arms = dict.fromkeys(row.variant for row in rows if row.labels == labels)
    pairs = [(arm, BASE) for arm in arms if arm != BASE] + [(a, b) for a, b in AGAINST.items() if a in arms]
    found = [one for arm, base in pairs for one in _compared(labels, arm, base, rows)]
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _compared(labels: int, arm: str, base: str, rows: Sequence[Measured]) -> Iterator[Comparison]:
    """Nothing if there is no draw that both have."""
    sides = [_of(rows, labels, name) for name in (arm, base)]
    draws = tuple(sorted({row.draw for row in sides[0]} & {row.draw for row in sides[1]}))
    first, second = ([row for row in side if row.draw in draws] for side in sides)
    if not draws:
        return
    patients = {_id(row): row.case_id for row in first}
    tests = compare(_per_case(first), _per_case(second), patients, ("dice", *DISTANCES))
    for test in tests:
        metric, summary = test["metric"], test["difference"]
        by_draw = tuple(_difference(first, second, metric, (draw,)) for draw in draws)
        interval = tuple(summary["ci95"]) if summary["ci95"] else None
        yield Comparison(labels, arm, base, metric, draws, summary["mean"], test["p"], interval, by_draw)
    for metric in TOPOLOGY:
        gains = np.array([_difference(first, second, metric, draws, case) for case in sorted(set(patients.values()))])
        p = float(stats.wilcoxon(gains, zero_method="pratt").pvalue) if gains.any() else 1.0
        yield Comparison(labels, arm, base, metric, draws, float(gains.mean()), p)


def _of(rows: Sequence[Measured], labels: int, variant: str) -> list[Measured]:
    return [row for row in rows if (row.labels, row.variant) == (labels, variant)]


def _id(row: Measured) -> str:
    return f"{row.case_id}#{row.draw}"


def _per_case(rows: Sequence[Measured]) -> list[StructureResult]:
    """The mean of the structures of each case and draw, as the evaluation's tests want it; missing if one is."""
    cells: dict[str, list[Measured]] = {}
    for row in rows:
        cells.setdefault(_id(row), []).append(row)
    found = []
    for case, parts in cells.items():
        values = {metric: [getattr(part, metric) for part in parts] for metric in ("dice", *DISTANCES)}
        means = {metric: None if None in found else float(np.mean(found)) for metric, found in values.items()}
        found.append(StructureResult(1, "both structures", means, case_id=case))
    return found


def _difference(
    first: Sequence[Measured], second: Sequence[Measured], metric: str, draws: Collection[int], case: str | None = None
) -> float:
    """Difference of the means over the rows that have a value, of one case or all."""
    means = [
        mean(getattr(row, metric) for row in side if row.draw in draws and case in (None, row.case_id))
        for side in (first, second)
    ]
    return means[0] - means[1]


def mean(values: Iterator[float | None]) -> float:
    """Of the values that are there; NaN of none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def markdown(results: Results, design: Mapping[int, int] = DESIGN, arms: Sequence[str] = ARMS) -> str:
    """The table: every planned arm, measured or not, then what else was measured; below it what else was compared."""
    columns = ["labels", "arm", "draws", "Dice", "gain, Dice points", "by draw", "HD95, mm", "ASSD, mm"]
    columns += ["extra components", "holes", "core-s a step", "D prefers the truth"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    notes = []
    for labels in dict.fromkeys([*design, *(run.labels for run in results.runs)]):
        tests, planned = comparisons(labels, results.rows), design.get(labels, 0)
        measured = [run.variant for run in results.runs if run.labels == labels]
        for arm in dict.fromkeys([*arms, *measured]) if measured else ():
            mine = [test for test in tests if (test.arm, test.base) == (arm, BASE)]
            cells = _cells(results, labels, arm, mine, planned if arm in arms else 0)
            lines.append(f"| {' | '.join([_count(labels), arm, *cells])} |")
        if not measured:
            lines.append(f"| {' | '.join([_count(labels), 'all arms', *_nothing(planned * len(arms))])} |")
        notes += [_verdict(labels, tests)] if tests else []
        others = [test for test in tests if test.base != BASE and test.metric == "dice"]
        notes += [f"{test.arm} against {test.base}, {_count(labels)} labels: {_gain(test)}" for test in others]
    every = {(arm, labels, draw) for arm in arms for labels, draws in design.items() for draw in range(draws)}
    if missing := every - results.finished:
        notes.append(f"{len(missing)} of {len(every)} planned runs are {NOT_MEASURED}")
    return "\n".join([*lines, *(f"| | {note} |" + " |" * (len(columns) - 2) for note in notes)]) + "\n"


def _nothing(planned: int) -> list[str]:
    return [f"0 of {planned}", NOT_MEASURED, *[""] * 8]


def _count(labels: int) -> str:
    return str(labels or "all")


def _cells(results: Results, labels: int, arm: str, tests: Sequence[Comparison], planned: int) -> list[str]:
    rows = _of(results.rows, labels, arm)
    runs = [run for run in results.runs if (run.labels, run.variant) == (labels, arm)]
    if not runs:
        return _nothing(planned)
    by_metric = {test.metric: test for test in tests}
    means = [mean(row.dice for row in rows if row.draw == run.draw) for run in runs]
    dice = f"{np.mean(means):.4f}" + (f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else "")
    test = by_metric.get("dice")
    by_draw = "" if test is None else ", ".join(f"{100 * gain:+.2f}" for gain in test.by_draw)
    draws = str(len(runs)) if len(runs) >= planned else f"{len(runs)} of {planned}"
    cells = [draws, dice, "" if test is None else _gain(test), by_draw]
    for metric in METRICS[1:]:
        corrected = f" ({by_metric[metric].p_holm:.2g})" if metric in by_metric else ""
        cells.append(f"{mean(getattr(row, metric) for row in rows):.3f}{_missed(rows, metric)}{corrected}")
    judged = [run for run in runs if run.true_is_real is not None]
    real, above = (mean(getattr(run, name) for run in judged) for name in ("true_is_real", "true_above_wrong"))
    judging = f"real {real:.0%}, above {above:.0%}" if judged else ""
    return [*cells, f"{np.median([run.step_seconds for run in runs]):.2f}", judging]


def _verdict(labels: int, tests: Sequence[Comparison]) -> str:
    """What the tests against plain training say of Dice, in words."""
    dice = [test for test in tests if test.base == BASE and test.metric == "dice"]
    sure = [f"{test.arm} {'gains' if test.difference > 0 else 'loses'}" for test in dice if test.p_holm < 0.05]
    found = ", ".join(sure) or f"no arm differs from plain training (smallest p {min(t.p_holm for t in dice):.2g})"
    return f"Dice, {_count(labels)} labels: {found}"


def _gain(test: Comparison) -> str:
    low, high = test.interval or (float("nan"), float("nan"))
    return f"{100 * test.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}; p {test.p_holm:.2g})"


def _missed(rows: Sequence[Measured], metric: str) -> str:
    """How many structures have no distance, which no mean may hide."""
    count = sum(getattr(row, metric) is None for row in rows)
    return f", {count} missed" if count else ""


def replaced(page: str, table: str) -> str:
    """A page with this table instead of the one with the same head."""
    lines, head = page.splitlines(), table.splitlines()[0]
    first = lines.index(head)
    last = next((n for n in range(first, len(lines)) if not lines[n].startswith("|")), len(lines))
    return "\n".join([*lines[:first], *table.splitlines(), *lines[last:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    table = markdown(Results.read(options.results))
    if options.docs:
        write_text(options.docs, replaced(options.docs.read_text(), table))
    print(table)


if __name__ == "__main__":
    main()
