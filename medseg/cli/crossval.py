"""``medseg crossval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli._app import BundleArgument, Outcome, app, command, terminal
from medseg.cli.train import Datalist, DatasetDir, Device, Settings, confine_training
from medseg.errors import UsageError
from medseg.files import prepare_folder


@app.command()
@command
def crossval(
    bundle: BundleArgument,
    *,
    folds: Annotated[
        str | None, typer.Option(help="Comma-separated folds to hold out in turn; all if not given.")
    ] = None,
    datalist: Datalist = None,
    dataset_dir: DatasetDir = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the folds; by default runs/crossval in the bundle."),
    ] = None,
    device: Device = None,
    settings: Settings = None,
) -> Outcome:
    """Train every fold and score each case by the network that has not seen it; the table goes into the bundle.

    Stopped, it goes on where it was. Exit code 1 if some cases could not be scored.

    Example: medseg crossval my_bundle --folds 0,1,2 --output runs/crossval
    """
    from medseg.bundle import Bundle

    chosen = None if folds is None else _numbers(folds)
    Bundle.open(bundle).check_trainable()  # told before seconds go into imports
    confine_training([bundle, *([] if output is None else [prepare_folder(output)])], settings)
    from medseg.cli._evaluation_tables import show_evaluation
    from medseg.cli._progress import TrainingProgress
    from medseg.training.configuration import parse_overrides
    from medseg.workflows import cross_validate

    console = terminal()
    result = cross_validate(
        bundle,
        output,
        folds=chosen,
        datalist=datalist,
        dataset_dir=dataset_dir,
        device=device,
        overrides=parse_overrides(settings or []),
        watchers=lambda: [TrainingProgress(console)],
        say=lambda line: console.print(line, style="bold"),
    )
    show_evaluation(console, result.evaluation)
    return Outcome(
        {"output": str(result.output), "folds": list(result.folds), **result.evaluation.summary},
        complete=result.evaluation.complete,
    )


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--folds is {text!r}, expected numbers such as 0,1,2")
    return [int(part) for part in dict.fromkeys(parts)]
