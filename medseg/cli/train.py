"""``medseg train``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import BundleArgument, Outcome, app, command, terminal
from medseg.cli._startup import confine_command
from medseg.errors import UsageError
from medseg.files import prepare_folder

if TYPE_CHECKING:
    from medseg.training import TrainingResult

Datalist = Annotated[Path | None, typer.Option(help="JSON datalist with folds, instead of the bundle's own.")]
DatasetDir = Annotated[Path | None, typer.Option(help="Folder that the datalist's paths are relative to.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="ID=VALUE of train.json; repeatable.")]
_Init = Annotated[Path | None, typer.Option(help="Another bundle, or a .pt file, to take fitting weights from.")]
_Rescale = Annotated[
    bool, typer.Option("--rescale", help="With --init from another task: weights as large as a fresh network's.")
]
_Teachers = Annotated[
    int,
    typer.Option(
        "--teachers",
        min=0,
        help="Networks to train first, each for 4 times the epochs; the last goes on from one and learns from all.",
    ),
]
_Fold = Annotated[int | None, typer.Option(help="Fold to validate on; -1 trains on every case.")]
_Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for checkpoints, metrics, pictures.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in --output stopped.")]
_Preset = Annotated[
    list[str] | None, typer.Option("--preset", help="Config of the bundle to lay over train.json; repeatable.")
]
_Publish = Annotated[bool, typer.Option("--publish", help="Copy the best model into the bundle.")]
_PublishFinal = Annotated[
    bool, typer.Option("--publish-final", help="Copy the model of the last epoch into the bundle.")
]
_TrustBundle = Annotated[
    bool, typer.Option("--trust-bundle", help="Run the bundle's own code although the audit blocks it; no network.")
]


@app.command()
@command
def train(
    bundle: BundleArgument,
    *,
    init: _Init = None,
    rescale: _Rescale = False,
    teachers: _Teachers = 0,
    datalist: Datalist = None,
    dataset_dir: DatasetDir = None,
    fold: _Fold = None,
    output: _Output = None,
    resume: _Resume = False,
    device: Device = None,
    preset: _Preset = None,
    settings: Settings = None,
    publish: _Publish = False,
    publish_final: _PublishFinal = False,
    trust_bundle: _TrustBundle = False,
) -> Outcome:
    """Train a bundle: generator against discriminator, with validation, checkpoints and exact resume.

    Example: medseg train bundles/hippocampus_mri_segmentation --dataset-dir Task04_Hippocampus --fold 0
    --output runs/fold0 --set epochs=10
    """
    publishes = publish or publish_final
    if teachers and output is None:
        raise UsageError("--teachers leaves a run of each beside the last one; say where, with --output")
    _check(bundle, output, preset or [], publishes=publishes)
    written = [] if output is None else [output]
    if publishes or output is None:
        written.append(bundle)
    confine_training(written, settings, own_code=trust_bundle)
    from medseg.bundle.find import find_bundle
    from medseg.cli._progress import TrainingProgress
    from medseg.training import train_bundle, train_with_teachers
    from medseg.training.configuration import parse_overrides

    with TrainingProgress(terminal()) as progress:
        run: Callable[..., TrainingResult] = train_bundle
        if teachers:
            run = partial(train_with_teachers, count=teachers, tell=terminal().print)
        result = run(
            bundle,
            datalist=datalist,
            dataset_dir=dataset_dir,
            fold=fold,
            output=output,
            resume=resume,
            device=device,
            presets=preset or [],
            overrides=parse_overrides(settings or []),
            init=None if init is None else find_bundle(init),
            rescale=rescale,
            publish="final" if publish_final else publish,
            watchers=[progress],
            permission="everything" if trust_bundle else "audited",
        )
    return _told(bundle, result)


def _check(bundle: Path, output: Path | None, presets: list[str], *, publishes: bool) -> None:
    """What can be known before anything heavy is imported."""
    from medseg.bundle import Bundle
    from medseg.bundle.find import is_installed_with_medseg

    if (output is None or publishes) and is_installed_with_medseg(bundle):
        raise UsageError(
            f"{bundle.name} is part of the installed medseg, where the next update overwrites what training writes; "
            f"copy it first (cp -r {bundle} bundles/), or give --output and do not publish"
        )
    Bundle.open(bundle, presets=presets).check_trainable()
    if output is not None:
        prepare_folder(output)


def confine_training(writable: list[Path], settings: list[str] | None, *, own_code: bool = False) -> None:
    """Behind the wall training writes to these folders, and reaches its own processes and the MLflow that the user
    names with ``--set mlflow=``; not one that the bundle names."""
    from medseg.confinement import WORKERS, Reach, ports_of

    reach = WORKERS
    address = next((text.removeprefix("mlflow=") for text in settings or () if text.startswith("mlflow=")), "")
    if address.startswith("sqlite:///"):
        writable = [*writable, prepare_folder(Path(address.removeprefix("sqlite:///")).parent)]
    elif address and not own_code:
        reach = Reach(connect=ports_of([address]))
    confine_command(writable, reach, imports="medseg.training", own_code=own_code)


def _told(bundle: Path, result: TrainingResult) -> Outcome:
    from medseg.bundle import Bundle
    from medseg.trust.trust_files import trust_state

    console, metric = terminal(), result.best_metric
    best = "no validation" if metric is None else f"best {metric:.4f} in epoch {result.best_epoch}"
    console.print(f"trained {result.epochs} epochs ({best}); everything is in {result.output}")
    if result.discriminator is not None:
        missing = "" if result.discriminator["accepted"] else "not "
        console.print(f"the discriminator is {missing}accepted as a judge; run.json has its figures")
    if result.published is not None:
        console.print(f"published {result.published}")
        if trust_state(Bundle.open(bundle)).state == "stale":
            console.print("trust belongs to the old weights: results have no verdict until `medseg trust fit` has run")
    return Outcome(
        {
            "output": str(result.output),
            "epochs": result.epochs,
            "iterations": result.iterations,
            "best_metric": metric,
            "best_epoch": result.best_epoch,
            "seconds": round(result.seconds, 1),
            "published": None if result.published is None else str(result.published),
        }
    )
