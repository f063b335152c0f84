"""``medseg train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli._command import BundleArgument, Outcome, command, terminal
from medseg.cli._isolation import cut_network
from medseg.cli.main import app
from medseg.errors import UsageError
from medseg.files import prepare_folder


@app.command()
@command
def train(
    bundle: BundleArgument,
    *,
    init: Annotated[
        Path | None, typer.Option(help="Another bundle, or a .pt file, to take fitting weights from.")
    ] = None,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="With --init from another task: weights as large as a fresh network's.")
    ] = False,
    datalist: Annotated[
        Path | None, typer.Option(help="JSON datalist with folds, instead of the bundle's own.")
    ] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder that the datalist's paths are relative to.")] = None,
    fold: Annotated[int | None, typer.Option(help="Fold to validate on; -1 trains on every case.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for checkpoints, metrics, pictures.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in --output stopped.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="ID=VALUE of train.json; repeatable.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Copy the best model into the bundle.")] = False,
    publish_final: Annotated[
        bool, typer.Option("--publish-final", help="Copy the model of the last epoch into the bundle.")
    ] = False,
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Run the bundle's own code although the audit blocks it; no network.")
    ] = False,
) -> Outcome:
    """Train a bundle: generator against discriminator, with validation, checkpoints and exact resume.

    Example: medseg train bundles/hippocampus_mri_segmentation --dataset-dir Task04_Hippocampus --fold 0
    --output runs/fold0 --set epochs=10
    """
    _keep_installed(bundle, writes=output is None or publish or publish_final)
    from medseg.bundle import Bundle
    from medseg.bundle.bundle import find_bundle

    Bundle.open(bundle).check_trainable()
    if output is not None:
        prepare_folder(output)
    from medseg.training import train_bundle
    from medseg.training.configuration import parse_overrides
    from medseg.training.progress import ProgressDisplay

    if trust_bundle:
        cut_network()
    console = terminal()
    with ProgressDisplay(console) as progress:
        result = train_bundle(
            bundle,
            datalist=datalist,
            dataset_dir=dataset_dir,
            fold=fold,
            output=output,
            resume=resume,
            device=device,
            overrides=parse_overrides(settings or []),
            init=None if init is None else find_bundle(init),
            rescale=rescale,
            publish="final" if publish_final else publish,
            watchers=[progress],
            permission="everything" if trust_bundle else "audited",
        )
    best = (
        "no validation" if result.best_metric is None else f"best {result.best_metric:.4f} in epoch {result.best_epoch}"
    )
    console.print(f"trained {result.epochs} epochs ({best}); everything is in {result.output}")
    if result.published is not None:
        console.print(f"published {result.published}")
        _say_trust(bundle)
    return Outcome(
        {
            "output": str(result.output),
            "epochs": result.epochs,
            "iterations": result.iterations,
            "best_metric": result.best_metric,
            "best_epoch": result.best_epoch,
            "seconds": round(result.seconds, 1),
            "published": None if result.published is None else str(result.published),
        }
    )


def _keep_installed(bundle: Path, *, writes: bool) -> None:
    from medseg.bundle.bundle import is_installed_with_medseg

    if writes and is_installed_with_medseg(bundle):
        raise UsageError(
            f"{bundle.name} is part of the installed medseg, where the next update overwrites what training writes; "
            f"copy it first (cp -r {bundle} bundles/), or give --output and do not publish"
        )


def _say_trust(bundle: Path) -> None:
    """New weights have no verdicts until trust is fitted to them."""
    from medseg.bundle import Bundle
    from medseg.trust.trust_files import trust_state

    if trust_state(Bundle.open(bundle)).state == "stale":
        terminal().print("trust belongs to the old weights: results have no verdict until `medseg trust fit` has run")
