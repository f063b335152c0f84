"""``medseg trust``: fit, worklist."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import BundleArgument, Outcome, app, command, terminal
from medseg.cli._startup import confine_command
from medseg.files import prepare_file

if TYPE_CHECKING:
    from medseg.workflows.trust_fit import Recalibration

trust_app = typer.Typer(
    help="Trust without ground truth: calibrate it on your own corrected cases, list what to look at.",
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
        float | None, typer.Option(help="Accepted if every lower bound reaches this; as before if not given.")
    ] = None,
    reject: Annotated[
        float | None, typer.Option(help="Rejected if a predicted Dice is below this; as before if not given.")
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


def _progress(finished: int, total: int) -> None:
    console = terminal()
    if not console.is_terminal or finished == total:
        console.print(f"{finished}/{total} cases looked at")


def _show(result: Recalibration) -> None:
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
    for structure in result.calibration.structures:
        bound = "; too few patients for a lower bound, so nothing will be accepted"
        console.print(
            f"{structure.name}: {structure.n_cases} results of {structure.n_patients} patients"
            + (bound if structure.quantile is None else ""),
        )
    for interval in result.volumes.structures if result.volumes else ():
        console.print(interval.describe())
    console.print(f"Wrote {result.path}: {result.n_cases} cases of {result.n_patients} patients")
