"""Put a run's model into its bundle, and say there what was done."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from monai.bundle import ConfigParser

from medseg._version import medseg_version
from medseg.bundle import Bundle
from medseg.bundle.training_run import TrainingRun
from medseg.errors import UsageError
from medseg.files import atomic_path, sha256_file, write_json
from medseg.training.checkpoints import Checkpoints
from medseg.training.trainer import AdversarialSegmentationTrainer

Which = Literal["best", "final"]


def publish(bundle: Bundle, folder: Path, run: TrainingRun, discriminator: Mapping[str, Any] | None) -> Path:
    """Copy a model of a run, and the discriminator beside it, into the bundle, and state the run there.

    Parameters
    ----------
    bundle
        Where to.
    folder
        The run's output folder.
    run
        What was done (:func:`describe_run`); its ``model`` says which weights are taken.
    discriminator
        Definition of the discriminator, for whoever loads its weights; None if there is none.

    Raises
    ------
    UsageError
        If the run left no such model.
    """
    chosen = folder / "checkpoints" / f"{run.model}.pt"
    if not chosen.exists():
        raise UsageError(f"there is no {run.model} model to publish: no validation has run; lower val_interval")
    target = bundle.path / "models" / "model.pt"
    with atomic_path(target) as partial:
        shutil.copyfile(chosen, partial)
    (target.with_suffix(".safetensors")).unlink(missing_ok=True)  # of the weights before; packing writes it anew
    opponent = chosen.with_name(f"{run.model}_discriminator.pt")
    if opponent.exists():
        _publish_discriminator(opponent, discriminator, bundle.path / "trust")
    replace(run, weights_sha256=sha256_file(target)).write(bundle)
    return target


def require_same_network(bundle: Bundle, network: Mapping[str, Any]) -> None:
    """Pass if the network that is trained is the one that the bundle's inference builds.

    Raises
    ------
    UsageError
        Before the first epoch, since published weights would fit nothing.
    """
    stated = bundle.config("inference").get("network_def")
    if stated is not None and stated != network:
        differing = sorted(key for key in {*stated, *network} if stated.get(key) != network.get(key))
        raise UsageError(
            f"the network differs in {', '.join(differing)} from the one in configs/inference.json of {bundle.name}, "
            "which could not use the published weights; change network_def in both files, or do not publish"
        )


def describe_run(
    model: Which,
    parser: ConfigParser,
    trainer: AdversarialSegmentationTrainer,
    checkpoints: Checkpoints,
    rows: Sequence[Mapping[str, float]],
) -> TrainingRun:
    """What a finished run was: length, cases by their SHA-256 sums, figures of the chosen epoch.

    Parameters
    ----------
    model
        Which of its models is meant.
    parser
        The configuration, with the ids ``fold`` and ``seed`` if it has them.
    trainer, checkpoints
        The training, and its handler that knows the validation and the cases.
    rows
        The table of the run, one row per epoch.
    """
    epochs, evaluator = int(trainer.state.epoch), checkpoints.evaluator
    epoch = epochs if model == "final" or evaluator is None else int(evaluator.state.best_metric_epoch)
    row = next((row for row in rows if row["epoch"] == epoch), {})
    figures = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
    cases = checkpoints.conditions(trainer).cases
    learnt, held_out = cases.get("training", []), cases.get("validation", [])
    return TrainingRun(
        weights_sha256="",
        model=model,
        epoch=epoch,
        epochs=epochs,
        iterations=int(trainer.state.iteration),
        fold=_id(parser, "fold", -1),
        cases=len(learnt),
        held_out_cases=len(held_out),
        figures={name: value for name, value in figures.items() if math.isfinite(value)},
        seed=_id(parser, "seed", None),
        precision=str(trainer.dtype).removeprefix("torch."),
        medseg=medseg_version(),
        images=_sums([*learnt, *cases.get("unlabelled", [])], labels=False),
        labels=_sums(learnt, labels=True),
    )


def _id(parser: ConfigParser, name: str, default: Any) -> Any:
    return parser.get_parsed_content(name) if name in parser.config else default


def _sums(cases: Iterable[Mapping[str, str | list[str]]], *, labels: bool) -> tuple[str, ...]:
    """SHA-256 sums of the labels, or of the images under whatever key each channel has."""
    found = {
        one
        for case in cases
        for key, value in case.items()
        if (key == "label") == labels
        for one in (value if isinstance(value, list) else [value])
    }
    return tuple(sorted(found))


def _publish_discriminator(weights: Path, definition: Mapping[str, Any] | None, trust: Path) -> None:
    from safetensors.torch import save_file

    with atomic_path(trust / "discriminator.safetensors") as partial:
        save_file(torch.load(weights, map_location="cpu", weights_only=True), partial)
    if definition is not None:
        write_json(trust / "discriminator.json", definition)
