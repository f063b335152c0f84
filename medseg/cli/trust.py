"""``medseg trust``: fit, worklist, watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import BundleArgument, Outcome, app, command, terminal
from medseg.cli._startup import confine_command
from medseg.files import prepare_file

if TYPE_CHECKING:
    from medseg.workflows.trust_fit import Recalibration
    from medseg.workflows.trust_watch import Finding, Stream

trust_app = typer.Typer(
    help="Trust without ground truth: calibrate it on your own corrected cases, list what to look at, watch it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(trust_app, name="trust")


@trust_app.command()
@command
def fit(
    bundle: BundleArgument,
    *,
    predictions: Annotated[Path, typer.Option("--predictions", help="Folder that `medseg infer` wrote.")],
    references: Annotated[
        Path, typer.Option("--references", help="Folder of corrected masks, or a datalist (which may name patients).")
    ],
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Where the images are now, if they were moved; repeatable.")
    ] = None,
    coverage: Annotated[float, typer.Option(help="How often the Dice shall lie above its lower bound.")] = 0.9,
    accept: Annotated[
        float | None, typer.Option(help="Accepted if every lower bound reaches this, instead of --precision.")
    ] = None,
    reject: Annotated[
        float | None, typer.Option(help="Rejected if a predicted Dice is below this; as before if not given.")
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Share of good ones among accepted results that accept is chosen for; as before, or 0.9."),
    ] = None,
    good: Annotated[
        float | None, typer.Option(help="Dice that every structure of a good result has; as before, or 0.8.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option("--training", help="Datalist of the training cases, to tell what is unlike them.")
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Train the bundle's error net further on these cases; takes minutes.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps.")] = "auto",
) -> Outcome:
    """Calibrate trust on your own hospital's corrected cases.

    The network looks at every image again; its label maps must be those in the folder. Exit code 1 if some cases could
    not be used. Correct whole cases, also those that trust accepts: a calibration on the bad ones alone holds for these
    alone.

    Example: medseg trust fit bundles/hippocampus_mri_segmentation --predictions results --references corrected
    """
    from medseg.confinement import WORKERS

    if bundle.is_dir():
        prepare_file(bundle / "trust" / "calibration.json")
        confine_command([bundle], WORKERS, imports="medseg.workflows.trust_fit")
    from medseg.workflows.trust_fit import FitRequest, recalibrate

    request = FitRequest(
        bundle,
        predictions,
        references,
        images=tuple(images or ()),
        coverage=coverage,
        accept=accept,
        reject=reject,
        precision=precision,
        good_dice=good,
        training=training,
        fine_tune=finish,
        device=device,
    )
    result = recalibrate(request, progress=_progress)
    _show(result)
    return Outcome(result.as_json(), complete=not result.skipped)


@trust_app.command()
@command
def worklist(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `medseg infer` wrote.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file to write; DIR/worklist.csv if not given.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many cases to print.")] = 10,
) -> Outcome:
    """List the results to look at, the least trusted first: where, and why. `medseg infer` writes the same list.

    Example: medseg trust worklist results
    """
    from medseg.evaluation.tables import measured_dice
    from medseg.results import RunReport, write_worklist

    path = folder / "worklist.csv" if output is None else prepare_file(output)
    rows = write_worklist(RunReport.read(folder), path, measured_dice(folder))
    for row in rows[:top]:
        where = f", look at {row.look_at_mm} mm" if row.look_at_mm else ""
        terminal().print(f"{row.rank:>4}  {row.case_id}: {row.verdict or 'no verdict'}{where}. {row.why}")
    terminal().print(f"{len(rows)} cases in {path}")
    return Outcome({"worklist": str(path), "cases": [asdict(row) for row in rows]})


@trust_app.command()
@command
def watch(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders that `medseg infer` or `medseg pacs` wrote, or folders of these."
        ),
    ],
    *,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Results that are as they should be, by the same bundle; repeatable."),
    ] = None,
    baseline: Annotated[
        int, typer.Option(help="Without --reference: how many first results are taken as usual.")
    ] = 100,
    false_alarms: Annotated[float, typer.Option(help="False alarms allowed in 1000 results, on average.")] = 1.0,
) -> Outcome:
    """Watch the results of weeks: has what trust says of them changed to the worse, in what, and since when?

    Look as often as you like: the rate of false alarms holds. Results of another bundle, version or engine are watched
    on their own. Exit code 1: something has changed, or a folder could not be read.

    Example: medseg trust watch results/2026-w*
    """
    from medseg.workflows.trust_watch import watch as look

    found, console = look(results, reference or (), baseline=baseline, per_1000=false_alarms), terminal()
    for why in found.unread.values():
        console.print(f"left out: {why}", style="yellow")
    console.print(
        f"{found.n_runs} runs by their time; at most {false_alarms:g} false alarms in 1000 results, on average"
    )
    for stream in found.streams:
        _show_stream(stream)
    return Outcome(found.as_json(), complete=not (found.changed or found.unread))


def _show_stream(stream: Stream) -> None:
    console, maker, studies = terminal(), stream.maker, stream.studies
    console.print()
    console.print(f"{maker.name or 'a bundle'} {maker.version} ({maker.files[:8]}, {maker.engine})")
    if stream.after is not None:
        console.print(f"  watched on its own, since it is another: {maker.told(stream.after)}")
    first, last = (f"{study.started:%Y-%m-%d}" for study in (studies[0], studies[-1]))
    out = "".join(f"; left out: {count} {why}" for why, count in stream.left_out.items())
    console.print(f"  {len(studies)} results, {first} to {last}{out}")
    if len(studies) <= stream.n_reference:
        console.print(f"  not tested yet: the first {stream.n_reference} results show what is usual")
        return
    console.print(f"  the first {stream.n_reference} show what is usual, the others were tested")
    for one in stream.changes:
        began, told = studies[one.change.since], one.change.told or 0
        console.print(f"  CHANGED  {_from_to(one)}", style="bold red")
        console.print(f"    since about result {one.change.since + 1} ({began.folder.name}, {began.started:%Y-%m-%d})")
        console.print(f"    known from result {told + 1} ({studies[told].folder.name})   {_line(one.history)}")
    quiet = [one for one in stream.findings if not one.change.changed]
    for one in sorted(quiet, key=lambda one: -one.change.evidence)[:1]:
        other = "other " if stream.changes else ""
        console.print(f"  no {other}change; nearest to one: {_from_to(one)}", style="green")


def _from_to(one: Finding) -> str:
    form = "{:.3f}" if "Dice" in one.name else "{:.1%}"
    before, since = ("unknown" if mean is None else form.format(mean) for mean in (one.before, one.since))
    return f"{one.name}: {before} → {since}"


def _line(values: Sequence[float]) -> str:
    """Heights over time in one line of text."""
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / ((high - low) or 1))] for value in values)


def _progress(finished: int, total: int) -> None:
    console = terminal()
    if not console.is_terminal or finished == total:
        console.print(f"{finished}/{total} cases looked at")


def _show(result: Recalibration) -> None:
    from medseg.trust.trust_files import TrustState
    from medseg.workflows.trust_fit import coverage_at_least, fewest_patients

    console = terminal()
    for skipped in result.skipped:
        console.print(f"{skipped.case_id}: left out, {skipped.message}", style="yellow")
    if (before := result.before) is not None:
        console.print(
            f"So far {before.reached} of {before.structures} structures reach their lower bound"
            f" ({before.coverage:.0%}, asked {result.calibration.coverage:.0%})",
        )
    for name in result.removed:
        console.print(f"Removed {name}: it belonged to other weights", style="yellow")
    if not result.flags:
        console.print("Nothing will be flagged as unlike the training: give --training to tell")
    coverage = result.calibration.coverage
    for structure in result.calibration.structures:
        least = coverage_at_least(coverage, structure.n_patients)
        if least is None or structure.quantile is None:
            bound = f"too few for a lower bound, which takes {fewest_patients(coverage)}, so nothing will be accepted"
        else:
            bound = f"lower bounds hold for {coverage:.0%} on average over such fits, for {least:.0%} in 19 of 20"
        console.print(f"{structure.name}: {structure.n_cases} results of {structure.n_patients} patients; {bound}")
    for interval in result.volumes.structures if result.volumes else ():
        console.print(interval.describe())
    console.print(f"Trust: {TrustState('ready', '', result.calibration).describe()}")
    console.print(f"Wrote {result.path}: {result.n_cases} cases of {result.n_patients} patients")
