"""What a run says of itself: ``run.json`` in its folder, and the bundle that its model is published into."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from monai.bundle import ConfigParser

from medseg._version import medseg_version
from medseg.bundle import Bundle
from medseg.bundle.training_run import TrainingRun
from medseg.errors import UsageError
from medseg.files import atomic_path, sha256_file, write_json
from medseg.training.checkpoints import CaseSums, Checkpoints, RunPart
from medseg.training.configuration import as_json
from medseg.training.trainer import AdversarialSegmentationTrainer

Which = Literal["best", "final"]

RUN_JSON = "run.json"


@dataclass(frozen=True)
class TrainingRecord:
    """``run.json`` of a training.

    Attributes
    ----------
    status
        ``running``, ``done``, ``interrupted`` or ``failed``.
    bundle, bundle_version
        Name and version.
    seed, configuration, overrides
        What was trained with: the configuration as used, and the ids that the call gave.
    datalist
        File; its sum is taken when the record is made.
    device, precision
        Where and in which formats is computed; None where the configuration could not be built.
    cases, start
        SHA-256 sums of the cases of each part, and of the starting weights; None where they are not known.
    parts
        The run between its starts.
    last_epoch
        Row of ``metrics.csv``.
    result
        Of a run that is done: the fields of :class:`~medseg.training.run.TrainingResult`.
    failure
        Of a run that ended before: ``reason``, ``error``, ``message`` (:func:`~medseg.training.failures.record_of`).
    """

    status: Literal["running", "done", "interrupted", "failed"]
    bundle: str
    bundle_version: str
    seed: Any
    configuration: Mapping[str, Any]
    overrides: Mapping[str, Any]
    datalist: Path
    device: str | None = None
    precision: Mapping[str, Any] | None = None
    cases: Mapping[str, Sequence[CaseSums]] | None = None
    start: str | None = None
    parts: Sequence[RunPart] = ()
    last_epoch: Mapping[str, float] | None = None
    result: Mapping[str, Any] | None = None
    failure: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object in ``run.json``; a figure that is no number is null."""
        record = {
            "medseg": medseg_version(),
            "torch": torch.__version__,
            "status": self.status,
            "bundle": {"name": self.bundle, "version": self.bundle_version},
            "device": self.device,
            "precision": self.precision,
            "seed": self.seed,
            "inputs": {
                "datalist": str(self.datalist),
                "datalist_sha256": sha256_file(self.datalist) if self.datalist.is_file() else None,
                "cases_sha256": self.cases,
                "init_sha256": self.start,
            },
            "overrides": self.overrides,
            "configuration": self.configuration,
            "parts": [asdict(part) for part in self.parts],
            "result": self.result,
            "last_epoch": self.last_epoch,
            **self.failure,
        }
        plain: dict[str, Any] = json.loads(json.dumps(as_json(record)), parse_constant=lambda _: None)
        return plain

    def write(self, folder: Path) -> None:
        """Write ``run.json``, whole or not at all."""
        write_json(folder / RUN_JSON, self.to_json())


def settings_of(folder: Path) -> dict[str, Any]:
    """What was set for the run in a folder, from its ``run.json``; nothing if MONAI runs the bundle by itself."""
    path = folder / RUN_JSON
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {"bundle": content["bundle"]["name"], "bundle version": content["bundle"]["version"], **content["overrides"]}


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


def _publish_discriminator(weights: Path, definition: Mapping[str, Any] | None, trust: Path) -> None:
    from safetensors.torch import save_file

    with atomic_path(trust / "discriminator.safetensors") as partial:
        save_file(torch.load(weights, map_location="cpu", weights_only=True), partial)
    if definition is not None:
        write_json(trust / "discriminator.json", definition)


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
        fold=parser.get_parsed_content("fold", default=-1),
        cases=len(learnt),
        held_out_cases=len(held_out),
        figures={name: value for name, value in figures.items() if math.isfinite(value)},
        seed=parser.get_parsed_content("seed", default=None),
        precision=str(trainer.dtype).removeprefix("torch."),
        medseg=medseg_version(),
        images=_sums([*learnt, *cases.get("unlabelled", [])], labels=False),
        labels=_sums(learnt, labels=True),
    )


def _sums(cases: Iterable[CaseSums], *, labels: bool) -> tuple[str, ...]:
    """SHA-256 sums of the labels, or of the images under whatever key each channel has."""
    found = {
        one
        for case in cases
        for key, value in case.items()
        if (key == "label") == labels
        for one in (value if isinstance(value, list) else [value])
    }
    return tuple(sorted(found))
