"""One training run of a bundle: the same run as ``python -m monai.bundle run training``, watched and resumable."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from monai.bundle import ConfigWorkflow

from medseg import __version__
from medseg.bundle import Bundle, Permission
from medseg.errors import BundleError, Interrupted, MedsegError, UsageError
from medseg.files import atomic_path, sha256_file, write_json
from medseg.training.checkpoints import Checkpoints
from medseg.training.datalist import with_folder
from medseg.training.engine import AdversarialSegmentationTrainer
from medseg.training.journal import Journal
from medseg.training.overrides import check_overrides
from medseg.training.stopping import StopRequest, locked

__all__ = ["TrainingResult", "Watcher", "train_bundle"]

_logger = logging.getLogger("medseg.training")


class Watcher(Protocol):
    """Anything with ``attach(trainer)``, such as a progress bar."""

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run left.

    Attributes
    ----------
    output
        Folder with ``run.json``, ``metrics.csv``, ``checkpoints/``, ``tensorboard/``, ``samples/``.
    epochs, iterations
        Done in total, earlier parts of a resumed run included.
    best_metric, best_epoch
        Key metric of the best validation; None and 0 if there was none.
    seconds
        Wall-clock time of this part of the run.
    published
        The bundle's ``models/model.pt`` if the best model was copied there.
    """

    output: Path
    epochs: int
    iterations: int
    best_metric: float | None
    best_epoch: int
    seconds: float
    published: Path | None = None

    @property
    def best_weights(self) -> Path:
        """State dict of the best model."""
        return self.output / "checkpoints" / "best.pt"


def train_bundle(  # noqa: PLR0913  the options of one command, all but the first with a default
    bundle: str | PathLike[str],
    *,
    datalist: str | PathLike[str] | None = None,
    dataset_dir: str | PathLike[str] | None = None,
    fold: int | None = None,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    device: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    init: str | PathLike[str] | None = None,
    rescale: bool = False,
    publish: bool | Literal["best", "final"] = False,
    watchers: Sequence[Watcher] = (),
    permission: Permission = "audited",
) -> TrainingResult:
    """Train a bundle by its own ``configs/train.json``.

    Parameters
    ----------
    bundle
        The bundle's folder.
    datalist, dataset_dir, fold, output, device
        Replace the ids ``datalist``, ``dataset_dir``, ``fold``, ``output_dir``, ``device`` of the configuration.
    resume
        Go on from the newest checkpoint in the output folder, exactly as if the run had never stopped; a finished
        run is left as it is. Epochs, rates, weights of losses and what is watched may be others than before and count
        from here on; anything else that differs is refused (:mod:`medseg.training.changes`). Without it, a folder that
        holds checkpoints is refused.
    overrides
        Further ids and their values; an id that the configuration does not have is refused.
    init
        Another bundle, or a state dict, whose fitting weights are copied before the first step: the id ``init``.
    rescale
        The id ``rescale``, for weights of another task: give those in front of a normalisation the size of fresh ones,
        which leaves what the network computes as it is and lets it learn at their pace
        (:func:`~medseg.training.initial.rescale`).
    publish
        Copy the model of the best validation (True or ``"best"``), or that of the last epoch (``"final"``, which
        keeps the figures of the held-out fold free of selection), and its discriminator, into the bundle.
    watchers
        Attached to the trainer after the configuration's own handlers.
    permission
        ``"everything"`` trains a bundle that the audit blocks. Its configuration is a program.

    Raises
    ------
    UntrustedBundle
        If the audit blocks the bundle.
    UsageError
        If an id is unknown, data is missing, or the output folder holds another run.
    BundleError
        If the configuration's trainer is not an :class:`AdversarialSegmentationTrainer` with ``Checkpoints``.
    Interrupted
        After SIGTERM or Ctrl-C; the state is saved and the same call with ``resume`` goes on.
    OutputLocked
        If another process trains into the same folder.
    """
    opened = Bundle.open(Path(bundle), permission)
    opened.runnable_config()
    named = {
        "datalist": datalist,
        "dataset_dir": dataset_dir,
        "output_dir": output,
        "device": device,
        "fold": fold,
        "init": init,
        "rescale": rescale or None,
    }
    given = {
        name: value if isinstance(value, int) else str(value) for name, value in named.items() if value is not None
    }
    given.update(overrides or {})
    workflow = _workflow(opened, with_folder(given, opened.config("train")))
    folder = Path(workflow.parser.get_parsed_content("output_dir"))
    with locked(folder):
        run = _Run(opened, workflow, folder, given)
        run.prepare(resume=resume)
        return run.execute(publish=publish, watchers=watchers)


class _Run:
    def __init__(self, bundle: Bundle, workflow: ConfigWorkflow, folder: Path, given: Mapping[str, Any]) -> None:
        self.bundle, self.workflow, self.folder, self.given = bundle, workflow, folder, dict(given)
        with _own_errors():
            workflow.initialize()
            trainer = workflow.parser.get_parsed_content("train#trainer")
            handlers = workflow.parser.get_parsed_content("train#handlers")
        checkpoints = next((handler for handler in handlers if isinstance(handler, Checkpoints)), None)
        if not isinstance(trainer, AdversarialSegmentationTrainer) or checkpoints is None:
            raise BundleError(
                f"the bundle {bundle.name} trains with {type(trainer).__name__}; 'medseg train' needs "
                "medseg.training.AdversarialSegmentationTrainer with medseg.training.Checkpoints among train#handlers. "
                "Run it with: python -m monai.bundle run training"
            )
        self.trainer, self.checkpoints = trainer, checkpoints
        self.journal = next((handler for handler in handlers if isinstance(handler, Journal)), None)

    def prepare(self, *, resume: bool) -> None:
        if self.checkpoints.latest() is not None and not resume:
            raise UsageError(
                f"the folder {self.folder} holds the checkpoints of another run; continue it with --resume, "
                "or choose another one with --output"
            )
        iteration = self.checkpoints.resume(self.trainer) if resume else 0
        if iteration:
            _logger.info("going on after iteration %d", iteration)
            for change in self.checkpoints.parts[-1]["changed"]:
                _logger.info("from here on %s is %s (it was %s)", change["id"], change["new"], change["old"])

    def execute(self, *, publish: bool | Literal["best", "final"], watchers: Sequence[Watcher]) -> TrainingResult:
        begun = time.perf_counter()
        self._write_record("running")
        for watcher in watchers:
            watcher.attach(self.trainer)
        state = self.trainer.state
        if state.iteration < state.max_epochs * state.epoch_length:
            self._train()
        published = self._publish("best" if publish is True else publish) if publish else None
        best, epoch = self._best()
        result = TrainingResult(
            self.folder, state.epoch, state.iteration, best, epoch, time.perf_counter() - begun, published
        )
        self.workflow.finalize()
        self._write_record("done", result)
        return result

    def _train(self) -> None:
        with StopRequest(self.trainer) as request:
            self.workflow.run()
        if request.stopped:
            path = self.checkpoints.save(self.trainer)
            self._write_record("interrupted")
            raise Interrupted(
                f"stopped after iteration {self.trainer.state.iteration}; everything is saved in {path}. "
                "Run the same command with --resume to go on"
            )

    def _best(self) -> tuple[float | None, int]:
        evaluator = self.checkpoints.evaluator
        if evaluator is None or evaluator.state.best_metric_epoch < 0:
            return None, 0
        return float(evaluator.state.best_metric), int(evaluator.state.best_metric_epoch)

    def _publish(self, which: Literal["best", "final"]) -> Path:
        chosen = self.folder / "checkpoints" / f"{which}.pt"
        if not chosen.exists():
            raise UsageError(f"there is no {which} model to publish: no validation has run; lower val_interval")
        target = self.bundle.path / "models" / "model.pt"
        _copy(chosen, target)
        opponent = chosen.with_name(f"{which}_discriminator.pt")
        if opponent.exists():
            _publish_discriminator(opponent, self.workflow, self.bundle.path / "trust")
        return target

    def _write_record(self, status: str, result: TrainingResult | None = None) -> None:
        datalist = Path(self.workflow.parser.get_parsed_content("datalist"))
        conditions = self.checkpoints.conditions(self.trainer)
        record = {
            "medseg": __version__,
            "torch": torch.__version__,
            "status": status,
            "bundle": {"name": self.bundle.name, "version": self.bundle.version},
            "device": str(self.trainer.state.device),
            "precision": str(self.trainer.dtype).removeprefix("torch."),
            "seed": self.workflow.parser.get_parsed_content("seed"),
            "inputs": {
                "datalist": str(datalist),
                "datalist_sha256": sha256_file(datalist),
                "cases_sha256": conditions.cases,
                "init_sha256": conditions.start,
            },
            "overrides": self.given,
            "configuration": conditions.configuration,
            "parts": self.checkpoints.parts_until(self.trainer.state.iteration),
            "result": None if result is None else _plain(asdict(result)),
            "last_epoch": self.journal.rows[-1] if self.journal is not None and self.journal.rows else None,
        }
        write_json(self.folder / "run.json", json.loads(json.dumps(record), parse_constant=lambda _: None))


def _workflow(bundle: Bundle, given: Mapping[str, Any]) -> ConfigWorkflow:
    configs = bundle.path / "configs"
    check_overrides(bundle.config("train"), given)
    return ConfigWorkflow(
        config_file=str(configs / "train.json"),
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
        bundle_root=str(bundle.path),
        **given,
    )


@contextmanager
def _own_errors() -> Iterator[None]:
    """An error of medseg inside of a configuration comes out as itself, not as MONAI's that wraps it."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MedsegError):
                raise cause from None
            cause = cause.__cause__
        raise


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)


def _publish_discriminator(weights: Path, workflow: ConfigWorkflow, trust: Path) -> None:
    from safetensors.torch import save_file

    with atomic_path(trust / "discriminator.safetensors") as partial:
        save_file(torch.load(weights, map_location="cpu", weights_only=True), partial)
    definition = workflow.parser.config.get("discriminator_def")
    if definition is not None:
        write_json(trust / "discriminator.json", definition)


def _plain(value: Any) -> Any:
    """JSON-ready copy: paths and other objects become text."""
    return json.loads(json.dumps(value, default=str))
