"""How ``medseg evaluate`` shows its result on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from medseg.evaluation.definitions import metric_named
from medseg.evaluation.trained_on import sentence

if TYPE_CHECKING:
    from rich.console import Console

    from medseg.evaluation import EvaluationResult, StructureResult

_N_WORST = 5
_N_LISTED = 5
_WIDTH_OF_A_LOG = 132
_WIDE = 112
_SIGNIFICANT = 0.05
_SURFACES = ("nsd", "hd95_mm", "assd_mm")


def show_evaluation(console: Console, result: EvaluationResult) -> None:
    """Print the averages with what they leave out beside them, the worst cases, and what could not be scored."""
    summary = result.summary
    if not console.is_terminal:
        # A log has no width to respect; cutting columns off would hide figures.
        console.width = max(console.width, _WIDTH_OF_A_LOG)
    width = console.width
    tables = _structures(_title(summary), summary["structures"], width)
    for value, structures in summary.get("subgroups", {}).get("groups", {}).items():
        tables += _structures(f"{summary['subgroups']['column']} = {value}", structures, width)
    tables.append(_worst(result.results))
    tables += _raters(summary.get("raters", ()))
    tables += [_lesions(name, sizes) for name, sizes in summary.get("lesions", {}).items()]
    if "accepted" in summary:
        tables.append(_accepted(summary["accepted"]))
    if "comparison" in summary:
        tables.append(_comparison(summary["comparison"]))
    for table in tables:
        console.print()
        console.print(table, markup=True)
    console.print()
    for line in (*_volumes(summary.get("volume_intervals", {})), *_remarks(summary)):
        console.print(line, markup=True)
    tolerance_mm = summary["definitions"]["tolerance_mm"]
    console.print(f"distances in mm, NSD at {tolerance_mm:g} mm, intervals by bootstrap over patients", style="dim")
    console.print(f"wrote {result.output / 'metrics.csv'} and metrics.json", style="dim")


def _title(summary: Mapping[str, Any]) -> str:
    n_cases, n_patients = summary["n_cases"], summary["n_patients"]
    return f"{n_cases} cases" if n_cases == n_patients else f"{n_cases} cases of {n_patients} patients"


def _table(title: str, *left: str) -> Table:
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,  # two blanks between columns: 80 of them hold every figure
    )
    for heading in left:
        table.add_column(heading, overflow="fold")
    return table


def _structures(title: str, structures: Mapping[str, Any], width: int) -> list[Table]:
    """One wide table, or on a narrow terminal one for the overlap and one for the surfaces."""
    if width >= _WIDE:
        return [_averages(title, structures, ("dice", *_SURFACES))]
    return [_averages(title, structures, ("dice",)), _averages(f"{title}, surfaces", structures, _SURFACES)]


def _averages(title: str, structures: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    table = _table(title, "structure")
    for heading in ("n", "missed", "invented"):
        table.add_column(heading, justify="right")
    for metric in metrics:
        if metric == "dice":
            for part in ("mean ± std", "95 % interval", "median"):
                table.add_column(Text(f"Dice\n{part}"), justify="right", no_wrap=True)
        else:
            table.add_column(Text(f"{_short(metric)}\nmean ± std"), justify="right", no_wrap=True)
    for name, row in structures.items():
        counts = (str(row["n"]), _alarm(row["n_missed"]), _alarm(row["n_invented"]))
        cells = [cell for metric in metrics for cell in _cells(metric, row["metrics"].get(metric))]
        table.add_row(escape(name), *counts, *cells)
    return table


def _short(metric: str) -> str:
    return metric_named(metric).title.removesuffix(" [mm]")


def _cells(metric: str, summary: Mapping[str, Any] | None) -> tuple[str, ...]:
    if not summary or summary["mean"] is None:
        return ("–", "–", "–") if metric == "dice" else ("–",)
    digits = 2 if metric.endswith("_mm") else 3
    spread = "" if summary["std"] is None else f" ± {summary['std']:.{digits}f}"
    mean = f"{summary['mean']:.{digits}f}{spread}"
    if metric != "dice":
        return (mean,)
    return mean, _interval(summary, "{:.3f}, {:.3f}"), f"{summary['median']:.3f}"


def _interval(summary: Mapping[str, Any], form: str) -> str:
    return "–" if summary["ci95"] is None else form.format(*summary["ci95"])


def _alarm(count: int) -> str:
    return f"[bold red]{count}[/bold red]" if count else "0"


def _worst(results: Sequence[StructureResult]) -> Table:
    table = _table("worst cases", "case", "structure")
    for heading in (Text("Dice"), Text("HD95"), Text("volume,\nreference [ml]")):
        table.add_column(heading, justify="right")
    table.add_column("")
    scored = [row for row in results if not row.absent]
    for row in sorted(scored, key=_badness)[:_N_WORST]:
        hd95 = row.values["hd95_mm"]
        table.add_row(
            escape(row.case_id),
            escape(row.name),
            f"{row.values['dice']:.3f}",
            "–" if hd95 is None else f"{hd95:.2f}",
            f"{row.values['volume_ml']:.3g}, {row.values['reference_volume_ml']:.3g}",
            "[bold red]missed[/bold red]" if row.missed else "[bold red]invented[/bold red]" if row.invented else "",
        )
    return table


def _badness(row: StructureResult) -> tuple[float, float]:
    dice, distance = row.values["dice"], row.values["hd95_mm"]
    return (0.0 if dice is None else dice, -float("inf") if distance is None else -distance)


def _raters(pairs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table for each structure."""
    tables: dict[str, Table] = {}
    for pair in pairs:
        for name, row in pair["structures"].items():
            if name not in tables:
                tables[name] = _table(f"{name}: each rater, and the raters among themselves", "compared", "with")
                for metric in ("dice", "nsd", "hd95_mm"):
                    heading = Text(f"{_short(metric)}\nmean ± std")
                    tables[name].add_column(heading, justify="right", no_wrap=True)
            cells = [_spread(metric, row["metrics"][metric]) for metric in ("dice", "nsd", "hd95_mm")]
            tables[name].add_row(escape(pair["compared"]), escape(pair["with"]), *cells)
    return list(tables.values())


def _lesions(name: str, sizes: Mapping[str, Any]) -> Table:
    table = _table(f"{name}: lesions matched one to one", "size")
    headings = ("reference", "found", "missed", "invented", "sensi-\ntivity", "preci-\nsion", "F1", "mean\nDice", "PQ")
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for size, row in sizes.items():
        counts = [str(row[key]) for key in ("n_reference", "n_found", "n_missed", "n_invented")]
        scores = [row[key] for key in ("sensitivity", "precision", "f1", "mean_dice", "panoptic_quality")]
        table.add_row(size, *counts, *("–" if score is None else f"{score:.2f}" for score in scores))
    return table


def _accepted(accepted: Mapping[str, Any]) -> Table:
    left_out = accepted["left_out_as_trained_on"]
    without = f", without {left_out} cases of the training" if left_out else ""
    judges = accepted["judges"]
    table = _table(f"what was accepted without references{without}: 95 % intervals after Clopper and Pearson", "judge")
    for heading in ("accepted", *(f"of these good\nDice ≥ {limit}" for limit in judges[0]["good"])):
        table.add_column(Text(heading), justify="right")
    for metric in ("dice", "hd95_mm"):
        table.add_column(Text(f"{_short(metric)}\naccepted"), justify="right", no_wrap=True)
        table.add_column(Text(f"{_short(metric)}\nothers"), justify="right", no_wrap=True)
    for one in judges:
        shares = [_share(share) for share in (one["accepted"], *one["good"].values())]
        spreads = [
            _spread(metric, one[metric][part]) for metric in ("dice", "hd95_mm") for part in ("accepted", "others")
        ]
        table.add_row(one["judge"], *shares, *spreads)
    return table


def _volumes(found: Mapping[str, Any]) -> Iterator[str]:
    """How many references lie in the interval of their volume."""
    for name, share in found.get("structures", {}).items():
        yield f"{escape(name)}: {_share(share)} reference volumes in their interval, {found['coverage']:.0%} expected"


def _share(share: Mapping[str, Any]) -> str:
    return f"{share['count']}/{share['of']} ({share['low']:.2f}, {share['high']:.2f})" if share["of"] else "–"


def _spread(metric: str, spread: Mapping[str, Any]) -> str:
    digits = 2 if metric.endswith("_mm") else 3
    std = "" if spread["std"] is None else f" ± {spread['std']:.{digits}f}"
    return "–" if spread["mean"] is None else f"{spread['mean']:.{digits}f}{std}"


def _comparison(comparison: Mapping[str, Any]) -> Table:
    table = _table(f"against {comparison['predictions']}: Wilcoxon over patients, Holm", "structure", "metric")
    for heading in ("difference", "95 % interval", "effect", "p (Holm)", "pairs"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for test in comparison["tests"]:
        mean = test["difference"]["mean"]
        table.add_row(
            escape(test["name"]),
            _short(test["metric"]),
            "–" if mean is None else f"{mean:+.3f}",
            _interval(test["difference"], "{:+.3f}, {:+.3f}"),
            f"{test['effect_size']:+.2f}",
            "–" if test["p_holm"] is None else f"{test['p_holm']:.2g}",
            str(test["n_pairs"]),
            _verdict(test),
        )
    return table


def _verdict(test: Mapping[str, Any]) -> str:
    if test["p_holm"] is None:
        return "[dim]too few[/dim]"
    if test["p_holm"] >= _SIGNIFICANT:
        return "[dim]not shown[/dim]"
    return "[green]better[/green]" if test["effect_size"] > 0 else "[red]worse[/red]"


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    remarks = [f"[bold yellow]warning[/bold yellow]: {escape(warning)}" for warning in summary["warnings"]]
    learnt = sentence(summary["trained_on"])
    if learnt:
        remarks.append(f"[bold red]{escape(learnt)}[/bold red]")
    other = sentence(summary.get("comparison", {}).get("trained_on"))
    if other:
        remarks.append(f"[bold red]of the predictions compared with, {escape(other)}[/bold red]")
    remarks += _notes(summary)
    if summary["n_missed"] or summary["n_invented"]:
        remarks.append(
            f"[bold red]{summary['n_missed']} structures missed, {summary['n_invented']} invented[/bold red]: they "
            "count as Dice 0 in the averages; they have no distance, so distances speak of the other cases only"
        )
    for side, cases in summary["unpaired"].items():
        if cases:
            remarks.append(f"[bold yellow]{len(cases)} {side} without a partner[/bold yellow]: {_listed(cases)}")
    comparison = summary.get("comparison", {"refused": [], "uncompared": []})
    for case in [*summary["refused"], *comparison["refused"]]:
        code = escape(f"[{case['code']}]")
        remarks.append(f"[bold red]refused[/bold red] {escape(case['case_id'])}: {code} {escape(case['message'])}")
    if comparison["uncompared"]:
        remarks.append(
            f"[bold yellow]{len(comparison['uncompared'])} case(s) were scored on one side of the comparison only"
            f"[/bold yellow]: {_listed(comparison['uncompared'])}"
        )
    return remarks


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """What was done without being asked: files left out, axes turned, names that differ paired."""
    notes = []
    turned: dict[str, list[str]] = {}
    for note in summary["notes"]:
        turned.setdefault(note["note"], []).append(note["case_id"])
    notes += [f"{len(cases)} case(s): {escape(what)} ({_listed(cases)})" for what, cases in turned.items()]
    renamed = [f"{case['prediction_case_id']} with {case['case_id']}" for case in _renamed(summary)]
    if renamed:
        notes.append(f"{len(renamed)} case(s) paired by names that differ: {_listed(renamed)}")
    named_only = [name for name, what in summary["left_out"].items() if what.startswith("called")]
    if named_only:
        notes.append(f"{len(named_only)} left out, called like maps that are no label maps: {_listed(named_only)}")
    return notes


def _renamed(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [case for case in summary["cases"] if "prediction_case_id" in case]


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - _N_LISTED} more" if len(cases) > _N_LISTED else ""
    return escape(", ".join(cases[:_N_LISTED]) + more)
