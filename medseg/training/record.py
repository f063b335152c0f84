"""What a run says of itself: ``run.json`` in its folder, and the bundle that its model is published into."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from medseg._version import medseg_version
from medseg.bundle import Bundle
from medseg.bundle.training_run import TrainingRun
from medseg.errors import UsageError
from medseg.files import atomic_path, sha256_file, write_json
from medseg.json_shape import ANYTHING, TEXT, Spec, read_json
from medseg.labels import ANNOTATED_KEY, MAPPING_KEY
from medseg.training.checkpoints import CaseSums, Checkpoints, RunPart
from medseg.training.configuration import as_json
from medseg.training.data import Draw, TrainingDataset
from medseg.training.trainer import AdversarialSegmentationTrainer
from medseg.trust.discriminator import Judging, accept_discriminator
from medseg.trust.discriminator_acceptance import ACCEPTANCE_NAME, DISCRIMINATOR_NAME, DiscriminatorAcceptance

Which = Literal["best", "final"]
Accept = Callable[[Mapping[str, Any], str], DiscriminatorAcceptance | None]

RUN_JSON = "run.json"
_SETTINGS: Spec = {"bundle!": {"name!": TEXT, "version!": TEXT}, "overrides!": {"*": ANYTHING}}


@dataclass(frozen=True)
class TrainingInputs:
    """What a run learns from: SHA-256 sums of the datalist, of every file of its cases, of its starting weights."""

    datalist: str
    datalist_sha256: str | None
    cases_sha256: Mapping[str, Sequence[CaseSums]] | None = None
    init_sha256: str | None = None


@dataclass(frozen=True)
class TrainingRecord:
    """``run.json`` of a training; its fields are the keys.

    ``overrides`` are the ids that the call gave, ``configuration`` is what was used, ``parts`` are the run between its
    starts, ``last_epoch`` is a row of ``metrics.csv``. ``device`` and ``precision`` are None where the configuration
    could not be built. ``result`` are the fields of :class:`~medseg.training.run.TrainingResult`; of a run that ended
    before, ``failure`` says why (:func:`~medseg.training.failures.record_of`), on the first level.
    """

    status: Literal["running", "done", "interrupted", "failed"]
    bundle: Mapping[str, str]
    seed: Any
    inputs: TrainingInputs
    overrides: Mapping[str, Any]
    configuration: Mapping[str, Any]
    device: str | None = None
    precision: Mapping[str, Any] | None = None
    parts: Sequence[RunPart] = ()
    last_epoch: Mapping[str, float] | None = None
    result: Mapping[str, Any] | None = None
    failure: Mapping[str, str] = field(default_factory=dict)
    medseg: str = field(default_factory=medseg_version)
    torch: str = torch.__version__

    def write(self, folder: Path) -> None:
        """Write ``run.json``, whole or not at all; a figure that is no number is null."""
        record = as_json(asdict(self))
        record |= record.pop("failure")
        write_json(folder / RUN_JSON, json.loads(json.dumps(record), parse_constant=lambda _: None))


def settings_of(folder: Path) -> dict[str, Any]:
    """What was set for the run in a folder, from its ``run.json``; nothing if MONAI runs the bundle by itself."""
    path = folder / RUN_JSON
    if not path.is_file():
        return {}
    content = read_json(path, _SETTINGS, "give the folder that `medseg train` wrote")
    return {"bundle": content["bundle"]["name"], "bundle version": content["bundle"]["version"], **content["overrides"]}


def require_same_network(bundle: Bundle, network: Mapping[str, Any]) -> None:
    """Refuse, before the first epoch, a network that the bundle's inference does not build: no weights would fit."""
    stated = bundle.config("inference").get("network_def")
    if stated is not None and stated != network:
        differing = sorted(key for key in {*stated, *network} if stated.get(key) != network.get(key))
        raise UsageError(
            f"the network differs in {', '.join(differing)} from the one in configs/inference.json of {bundle.name}, "
            "which could not use the published weights; change network_def in both files, or do not publish"
        )


def acceptance_of(
    trainer: AdversarialSegmentationTrainer,
    parser: ConfigParser,
    classes: int,
    state: Mapping[str, Tensor] | None = None,
    weights_sha256: str = "",
) -> DiscriminatorAcceptance | None:
    """Try the discriminator of a run on ``validate#dataset`` of its configuration.

    Parameters
    ----------
    trainer
        The run, at its end.
    parser
        Its configuration. Its cases are held out if the id ``fold`` is one of the folds.
    classes
        Channels of the generator's output.
    state
        Weights of the discriminator, if not those that it has now.
    weights_sha256
        Of the file that they are published in.

    Returns
    -------
    None where there is nothing to try: no discriminator of segmentations, one that never learnt, no validation.
    """
    adversary, cases = trainer.adversary, parser.get_parsed_content("validate#dataset", default=None)
    if adversary is None or not adversary.judges_labels or not trainer.schedule.share or not hasattr(cases, "__len__"):
        return None
    discriminator = adversary.discriminator
    if state is not None:
        discriminator = copy.deepcopy(discriminator)
        discriminator.load_state_dict(state)
    judging = Judging(
        patch=_patch(trainer.data_loader.dataset),
        classes=classes,
        threshold=adversary.loss.threshold,
        regions=adversary.activation == "sigmoid",
    )
    held_out = int(parser.get_parsed_content("fold", default=-1)) >= 0
    return accept_discriminator(discriminator, cases, judging, held_out=held_out, weights_sha256=weights_sha256)


def _patch(dataset: Any) -> tuple[int, ...]:
    """Side of the patches that a run is trained with."""
    first = dataset[Draw(0, 0)] if isinstance(dataset, TrainingDataset) else dataset[0]
    return tuple(int(n) for n in first["image"].shape[1:])


def publish(
    bundle: Bundle, folder: Path, run: TrainingRun, discriminator: Mapping[str, Any] | None, accept: Accept
) -> Path:
    """Copy a model of the run in ``folder``, and the discriminator beside it, into the bundle, and state the run there.

    ``run.model`` says which weights are taken; ``discriminator`` is its definition, for whoever loads its weights;
    ``accept`` tries those weights, of a file with that sum.
    """
    chosen = folder / "checkpoints" / f"{run.model}.pt"
    if not chosen.exists():
        raise UsageError(f"there is no {run.model} model to publish: no validation has run; lower val_interval")
    target = bundle.path / "models" / "model.pt"
    with atomic_path(target) as partial:
        shutil.copyfile(chosen, partial)
    (target.with_suffix(".safetensors")).unlink(missing_ok=True)  # of the weights before; packing writes it anew
    opponent, trust = chosen.with_name(f"{run.model}_discriminator.pt"), bundle.path / "trust"
    if opponent.exists():
        from safetensors.torch import save_file

        state = torch.load(opponent, map_location="cpu", weights_only=True)
        (bundle.path / ACCEPTANCE_NAME).unlink(missing_ok=True)  # of the weights before
        with atomic_path(bundle.path / DISCRIMINATOR_NAME) as partial:
            save_file(state, partial)
        if discriminator is not None:
            write_json(trust / "discriminator.json", discriminator)
        if (acceptance := accept(state, sha256_file(bundle.path / DISCRIMINATOR_NAME))) is not None:
            acceptance.write(bundle.path / ACCEPTANCE_NAME)
    replace(run, weights_sha256=sha256_file(target)).write(bundle)
    return target


def describe_run(
    model: Which,
    parser: ConfigParser,
    trainer: AdversarialSegmentationTrainer,
    checkpoints: Checkpoints,
    rows: Sequence[Mapping[str, float]],
) -> TrainingRun:
    """What a finished run was: length, cases by their SHA-256 sums, figures (of ``rows``) of the chosen epoch."""
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
    no_files = (MAPPING_KEY, ANNOTATED_KEY)
    items = [(key, value) for case in cases for key, value in case.items() if key not in no_files]
    chosen = [value for key, value in items if (key == "label") == labels]
    return tuple(sorted({one for value in chosen for one in (value if isinstance(value, list) else [value])}))
