"""What a run says of itself: ``run.json`` in its folder, and what it was, for a bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from medseg._version import medseg_version
from medseg.bundle import Bundle
from medseg.bundle.training_run import TrainingRun
from medseg.errors import UsageError
from medseg.files import write_json
from medseg.json_shape import ANYTHING, TEXT, Spec, read_json
from medseg.labels import ANNOTATED_KEY, MAPPING_KEY
from medseg.training.checkpoints import CaseSums, Checkpoints, RunPart
from medseg.training.configuration import as_json
from medseg.training.trainer import AdversarialSegmentationTrainer
from medseg.transforms import LoadLabeld

Which = Literal["best", "final"]

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
    before, ``failure`` says why (:func:`~medseg.training.failures.record_of`), on the first level. ``label_notes`` say
    of a label, by its first file, what was done to read it; ``notes`` what is done otherwise than the bundle says.
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
    label_notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
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


def label_notes(datasets: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """What the labels of data sets were read with, by their first file; of a cached data set all are read by now."""
    transforms = [transform for one in datasets if isinstance(transform := getattr(one, "transform", None), Compose)]
    steps = [step for transform in transforms for step in transform.flatten().transforms]
    notes = {file: told for step in steps if isinstance(step, LoadLabeld) for file, told in step.notes.items()}
    return dict(sorted(notes.items()))


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
    images = _sums([*learnt, *cases.get("unlabelled", [])], labels=False)
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
        apart=bool(held_out) and {*images}.isdisjoint(_sums(held_out, labels=False)),
        images=images,
        labels=_sums(learnt, labels=True),
    )


def _sums(cases: Iterable[CaseSums], *, labels: bool) -> tuple[str, ...]:
    """SHA-256 sums of the labels, or of the images under whatever key each channel has."""
    no_files = (MAPPING_KEY, ANNOTATED_KEY)
    items = [(key, value) for case in cases for key, value in case.items() if key not in no_files]
    chosen = [value for key, value in items if (key == "label") == labels]
    return tuple(sorted({one for value in chosen for one in (value if isinstance(value, list) else [value])}))
