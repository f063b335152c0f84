"""One training run of a bundle: the same run as ``python -m monai.bundle run training``, watched and resumable."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from monai.bundle import ConfigWorkflow

from medseg._version import medseg_version
from medseg.bundle import Bundle, Permission
from medseg.errors import BundleError, Interrupted, MedsegError, TrainingFailed, UsageError
from medseg.files import sha256_file, write_json
from medseg.training.checkpoints import Checkpoints
from medseg.training.configuration import check_overrides
from medseg.training.data import with_folder
from medseg.training.failures import ended_by_signal, named_failure, record_of
from medseg.training.metrics_log import MetricsLogger
from medseg.training.publish import describe_run, publish, require_same_network
from medseg.training.stopping import StopRequest, locked
from medseg.training.trainer import AdversarialSegmentationTrainer

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
        from here on; anything else that differs is refused (:mod:`medseg.training.resume`). Without it, a folder that
        holds checkpoints is refused.
    overrides
        Further ids and their values; an id that the configuration does not have is refused.
    init
        Another bundle, or a state dict, whose fitting weights are copied before the first step: the id ``init``.
    rescale
        The id ``rescale``, for weights of another task: give those in front of a normalisation the size of fresh ones,
        which leaves what the network computes as it is and lets it learn at their pace
        (:func:`~medseg.training.initialise.rescale`).
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
    TrainingFailed
        If anything else ends the run before its last iteration; ``run.json`` says what.
    """
    opened = Bundle.open(Path(bundle), permission)
    opened.permit("train", train=opened.training)
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
    workflow = _workflow(opened, with_folder(given, opened.training))
    if publish:
        require_same_network(opened, workflow.parser.config["network_def"])
    folder = Path(workflow.parser.get_parsed_content("output_dir"))
    with locked(folder):
        run = _Run(opened, workflow, folder, given)
        try:
            run.build()
            run.prepare(resume=resume)
            return run.execute(publish, watchers)
        except KeyboardInterrupt as error:
            raise run.ended(Interrupted("stopped by Ctrl-C; run the same command with --resume to go on")) from error
        except Exception as error:
            raise run.ended(run.named(error)) from error


class _Run:
    trainer: AdversarialSegmentationTrainer
    checkpoints: Checkpoints
    journal: MetricsLogger | None = None

    def __init__(self, bundle: Bundle, workflow: ConfigWorkflow, folder: Path, given: Mapping[str, Any]) -> None:
        self.bundle, self.workflow, self.folder, self.given = bundle, workflow, folder, dict(given)
        self.begun = not (folder / "run.json").exists()  # else the record is that of another run until this one begins

    def build(self) -> None:
        self.workflow.initialize()
        parsed = self.workflow.parser.get_parsed_content
        trainer, handlers = parsed("train#trainer"), parsed("train#handlers")
        checkpoints = next((handler for handler in handlers if isinstance(handler, Checkpoints)), None)
        if not isinstance(trainer, AdversarialSegmentationTrainer) or checkpoints is None:
            raise BundleError(
                f"the bundle {self.bundle.name} trains with {type(trainer).__name__}; 'medseg train' needs "
                "medseg.training.AdversarialSegmentationTrainer with medseg.training.Checkpoints among train#handlers. "
                "Run it with: python -m monai.bundle run training"
            )
        self.trainer, self.checkpoints = trainer, checkpoints
        self.journal = next((handler for handler in handlers if isinstance(handler, MetricsLogger)), None)

    def named(self, error: Exception) -> MedsegError:
        if not hasattr(self, "trainer"):
            return named_failure(error, "before its first iteration", self.folder, resumable=False)
        state = self.trainer.state
        where = f"in iteration {state.iteration} of {self.trainer.iterations} (epoch {state.epoch})"
        return named_failure(error, where, self.folder, resumable=self.checkpoints.latest() is not None)

    def ended(self, error: MedsegError) -> MedsegError:
        """Note in ``run.json`` why the run ended; the error itself is handed back, also where that is not possible."""
        if self.begun:
            try:
                self._write_record("interrupted" if isinstance(error, Interrupted) else "failed", **record_of(error))
            except (OSError, MedsegError) as unwritten:
                _logger.error("run.json could not be written either: %s", unwritten)  # noqa: TRY400  told at its end
        return error

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

    def execute(self, chosen: bool | Literal["best", "final"], watchers: Sequence[Watcher]) -> TrainingResult:
        begun = time.perf_counter()
        self._write_record("running")
        self.begun = True
        for watcher in watchers:
            watcher.attach(self.trainer)
        state = self.trainer.state
        if state.iteration < self.trainer.iterations:
            self._train()
        self._require_end()
        published = self._publish("best" if chosen is True else chosen) if chosen else None
        best, epoch = self._best()
        result = TrainingResult(
            self.folder, state.epoch, state.iteration, best, epoch, time.perf_counter() - begun, published
        )
        self.workflow.finalize()
        self._write_record("done", result=_plain(asdict(result)))
        return result

    def _train(self) -> None:
        with StopRequest(self.trainer) as request:
            try:
                self.workflow.run()
            except Exception as error:
                if not (request.requested and ended_by_signal(error)):
                    raise
                request.stopped = True
        if request.stopped:
            where = f"{'after' if request.complete else 'in'} iteration {self.trainer.state.iteration}"
            path = self.checkpoints.save(self.trainer) if request.complete else self.checkpoints.latest()
            raise Interrupted(
                f"stopped {where}; everything is saved in {path}. Run the same command with --resume to go on"
                if path
                else f"stopped {where}, before anything was saved; run the same command to start again"
            )

    def _require_end(self) -> None:
        """A run is done when its last iteration is, and its checkpoint lies there: nothing else is believed."""
        done, planned, latest = self.trainer.state.iteration, self.trainer.iterations, self.checkpoints.latest()
        if done < planned:
            raise TrainingFailed(
                f"the bundle's 'run' or a handler ended the training after iteration {done} of {planned}; expected all "
                f"of them. What was saved is in {self.checkpoints.folder}; go on with --resume, or lower epochs",
                "stopped-early",
            )
        if not planned or latest is None:
            raise TrainingFailed(
                f"the training made {done} of {planned} iterations and left no checkpoint in "
                f"{self.checkpoints.folder}; expected at least one. Look at epochs, iterations and train#handlers",
                "nothing-saved",
            )

    def _best(self) -> tuple[float | None, int]:
        evaluator = self.checkpoints.evaluator
        if evaluator is None or evaluator.state.best_metric_epoch < 0:
            return None, 0
        return float(evaluator.state.best_metric), int(evaluator.state.best_metric_epoch)

    def _publish(self, which: Literal["best", "final"]) -> Path:
        parser, rows = self.workflow.parser, [] if self.journal is None else self.journal.rows
        described = describe_run(which, parser, self.trainer, self.checkpoints, rows)
        return publish(self.bundle, self.folder, described, parser.config.get("discriminator_def"))

    def _write_record(self, status: str, **outcome: Any) -> None:
        datalist = Path(self.workflow.parser.get_parsed_content("datalist"))
        trainer = getattr(self, "trainer", None)  # None where the configuration could not be built
        conditions = None if trainer is None else self.checkpoints.conditions(trainer)
        record = {
            "medseg": medseg_version(),
            "torch": torch.__version__,
            "status": status,
            "bundle": {"name": self.bundle.name, "version": self.bundle.version},
            "device": None if trainer is None else str(trainer.state.device),
            "precision": None if trainer is None else trainer.format.record(),
            "seed": self.workflow.parser.get_parsed_content("seed"),
            "inputs": {
                "datalist": str(datalist),
                "datalist_sha256": sha256_file(datalist) if datalist.is_file() else None,
                "cases_sha256": None if conditions is None else conditions.cases,
                "init_sha256": None if conditions is None else conditions.start,
            },
            "overrides": self.given,
            "configuration": _plain(self.workflow.parser.config) if conditions is None else conditions.configuration,
            "parts": [] if trainer is None else self.checkpoints.parts_until(trainer.state.iteration),
            "result": None,
            "last_epoch": self.journal.rows[-1] if self.journal is not None and self.journal.rows else None,
            **outcome,
        }
        write_json(self.folder / "run.json", json.loads(json.dumps(record), parse_constant=lambda _: None))


def _workflow(bundle: Bundle, given: Mapping[str, Any]) -> ConfigWorkflow:
    check_overrides(bundle.training, given)
    workflow = ConfigWorkflow(
        config_file=str(bundle.config_file("train")),
        meta_file=str(bundle.path / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
    )
    # what was judged is evaluated, not what the files hold by now
    workflow.parser.set(copy.deepcopy(bundle.training))
    workflow.parser.set(copy.deepcopy(bundle.metadata), workflow.parser.meta_key)
    workflow.parser.update({"bundle_root": str(bundle.path), **given})
    return workflow


def _plain(value: Any) -> Any:
    """JSON-ready copy: paths and other objects become text."""
    return json.loads(json.dumps(value, default=str))
