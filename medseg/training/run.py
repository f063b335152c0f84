"""One training run of a bundle: the same run as ``python -m monai.bundle run training``, watched and resumable."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from medseg.bundle import Bundle, Permission
from medseg.devices import resolve_device
from medseg.errors import BundleError, Interrupted, MedsegError, TrainingFailed
from medseg.files import locked_folder, sha256_file
from medseg.signals import signals_interrupt, signals_noted
from medseg.training.checkpoints import Checkpoints
from medseg.training.configuration import as_json, check_overrides
from medseg.training.data import with_folder
from medseg.training.distributed import in_any_process
from medseg.training.failures import ended_by_signal, named_failure, record_of
from medseg.training.judge import JUDGE_NAME, Judge, judge_of
from medseg.training.metrics_log import MetricsLogger
from medseg.training.publish import Accept, acceptance_of, publish
from medseg.training.record import (
    RUN_JSON,
    TrainingInputs,
    TrainingRecord,
    Which,
    describe_run,
    label_notes,
    require_same_network,
)
from medseg.training.trainer import AdversarialSegmentationTrainer
from medseg.trust.discriminator_acceptance import DiscriminatorAcceptance

_logger = logging.getLogger("medseg.training")


class Watcher(Protocol):
    """Anything with ``attach(trainer)``, such as a progress bar."""

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run left: its folder, its length, its best model."""

    output: Path  # with ``run.json``, ``metrics.csv``, ``checkpoints/``, ``tensorboard/``, ``samples/``
    epochs: int
    iterations: int  # in total, earlier parts of a resumed run included
    best_metric: float | None  # key metric of the best validation; None if there was none
    best_epoch: int
    seconds: float  # of this part
    published: Path | None = None  # the bundle's ``models/model.pt`` if a model was copied there
    discriminator: Mapping[str, Any] | None = None
    """Whether the judge, or without one the discriminator of the last epoch, tells true from wrong segmentations of
    the held-out cases, as in ``trust/discriminator_acceptance.json`` of a bundle; None if it never learnt."""
    judge: Mapping[str, Any] | None = None  # how it has learnt, and in how many core-seconds; None without one

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
    presets: Sequence[str] = (),
    publish: bool | Which = False,
    watchers: Sequence[Watcher] = (),
    permission: Permission = "audited",
) -> TrainingResult:
    """Train a bundle by its own ``configs/train.json``.

    Parameters
    ----------
    datalist, dataset_dir, fold, output, device, init, rescale
        Replace the ids ``datalist``, ``dataset_dir``, ``fold``, ``output_dir``, ``device`` of the configuration, and
        those of the starting weights (:func:`~medseg.training.initialise.started`).
    presets
        Names of configs of the bundle that are laid over its ``train.json``, one after the other.
    resume
        Go on from the newest checkpoint in the output folder, exactly as if the run had never stopped; a finished
        run is left as it is. Epochs, rates, weights of losses and what is watched may be others than before and count
        from here on; anything else that differs is refused. Without it, a folder that holds checkpoints is refused.
    overrides
        Further ids and their values; an id that the configuration does not have is refused.
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
    opened = Bundle.open(Path(bundle), permission, presets)
    named = {
        "datalist": datalist,
        "dataset_dir": dataset_dir,
        "output_dir": output,
        "device": device,
        "fold": fold,
        "init": init,
        "rescale": rescale or None,
    }
    given = {key: value if isinstance(value, int) else str(value) for key, value in named.items() if value is not None}
    given.update(overrides or {})
    if opened.adopted is not None and "device" in given:
        given["device"] = resolve_device(str(given["device"]))
    workflow = _workflow(opened, with_folder(given, opened.training))
    if publish:
        require_same_network(opened, workflow.parser.config["network_def"])
    folder = Path(workflow.parser.get_parsed_content("output_dir"))
    refusal = f"another process is training into {folder}; wait for it, or choose another folder with --output"
    with locked_folder(folder, refusal):
        run = _Run(opened, workflow, folder, given)
        try:
            trainer = run.build()
            run.prepare(trainer, resume=resume)
            return run.execute(trainer, "best" if publish is True else publish or None, watchers)
        except KeyboardInterrupt as error:
            raise run.ended(Interrupted("stopped by Ctrl-C; run the same command with --resume to go on")) from error
        except Exception as error:
            raise run.ended(run.named(error)) from error


def _workflow(bundle: Bundle, given: Mapping[str, Any]) -> ConfigWorkflow:
    config = bundle.permitted_training(given)
    check_overrides(bundle.training, given)
    workflow = ConfigWorkflow(
        config_file=str(bundle.config_file("train")),
        meta_file=str(bundle.path / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
    )
    # what was judged is evaluated, not what the files hold by now
    workflow.parser.set(config)
    workflow.parser.set(copy.deepcopy(bundle.metadata), workflow.parser.meta_key)
    return workflow


class _Run:
    trainer: AdversarialSegmentationTrainer | None = None
    checkpoints: Checkpoints
    metrics: MetricsLogger | None = None

    def __init__(self, bundle: Bundle, workflow: ConfigWorkflow, folder: Path, given: Mapping[str, Any]) -> None:
        self.bundle, self.workflow, self.folder, self.given = bundle, workflow, folder, dict(given)
        self.begun = not (folder / RUN_JSON).exists()  # else the record is that of another run until this one begins

    def build(self) -> AdversarialSegmentationTrainer:
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
        self.metrics = next((handler for handler in handlers if isinstance(handler, MetricsLogger)), None)
        return trainer

    def named(self, error: Exception) -> MedsegError:
        if self.trainer is None:
            return named_failure(error, "before its first iteration", self.folder, resumable=False)
        state = self.trainer.state
        where = f"in iteration {state.iteration} of {self.trainer.iterations} (epoch {state.epoch})"
        return named_failure(error, where, self.folder, resumable=self.checkpoints.latest() is not None)

    def ended(self, error: MedsegError) -> MedsegError:
        """Note in ``run.json`` why the run ended; the error itself is handed back, also where that is not possible."""
        if self.begun:
            try:
                self._write("interrupted" if isinstance(error, Interrupted) else "failed", failure=record_of(error))
            except (OSError, MedsegError) as unwritten:
                _logger.error("run.json could not be written either: %s", unwritten)  # noqa: TRY400  told at its end
        return error

    def prepare(self, trainer: AdversarialSegmentationTrainer, *, resume: bool) -> None:
        if not resume:
            self.checkpoints.require_none()
        elif iteration := self.checkpoints.resume(trainer):
            _logger.info("going on after iteration %d", iteration)
            for change in self.checkpoints.parts[-1].changed:
                _logger.info("from here on %s", change)
        if not trainer.state.iteration:  # what an earlier run has left may have seen the cases that are held out now
            (self.checkpoints.folder / JUDGE_NAME).unlink(missing_ok=True)

    def execute(
        self, trainer: AdversarialSegmentationTrainer, chosen: Which | None, watchers: Sequence[Watcher]
    ) -> TrainingResult:
        begun = time.perf_counter()
        self._write("running")
        self.begun = True
        for watcher in watchers:
            watcher.attach(trainer)
        state = trainer.state
        if state.iteration < trainer.iterations:
            self._train(trainer)
        self._require_end(trainer)
        try:
            with signals_interrupt():
                judge, accepted, published = self._judge_and_publish(trainer, chosen)
        except Exception as error:
            if not isinstance(self.named(error), Interrupted):  # which may come from within a transform
                raise
            raise Interrupted(
                "stopped while the judge learnt, was tried, or was published; the training itself is done and saved. "
                "Run the same command with --resume to go on"
            ) from error
        best, epoch, evaluator = None, 0, self.checkpoints.evaluator
        if evaluator is not None and evaluator.state.best_metric_epoch >= 0:
            best, epoch = float(evaluator.state.best_metric), int(evaluator.state.best_metric_epoch)
        seconds = time.perf_counter() - begun
        tried = None if accepted is None else accepted.to_json()
        learnt = None if judge is None else judge.as_json()
        result = TrainingResult(
            self.folder, state.epoch, state.iteration, best, epoch, seconds, published, tried, learnt
        )
        self.workflow.finalize()
        self._write("done", result=asdict(result))
        return result

    def _judge_and_publish(
        self, trainer: AdversarialSegmentationTrainer, chosen: Which | None
    ) -> tuple[Judge | None, DiscriminatorAcceptance | None, Path | None]:
        """What comes after the last iteration: the judge, what comes of its trial, the published model."""
        parser = self.workflow.parser
        judge = judge_of(trainer, parser, self.checkpoints.folder)
        accept = partial(acceptance_of, trainer, parser, self.bundle.output_channels, judge)
        accepted = accept()
        if accepted is not None:
            who = "the discriminator of the last epoch" if judge is None else "the judge"
            _logger.info("%s: %s", who, accepted.describe())
        if not chosen:
            return judge, accepted, None
        again: Accept = accept
        if judge is not None and accepted is not None:  # the same weights need no second trial
            again = partial(_accepted_before, accepted)
        rows = [] if self.metrics is None else self.metrics.rows
        described = describe_run(chosen, parser, trainer, self.checkpoints, rows)
        opponent = parser.config.get("discriminator_def")
        return judge, accepted, publish(self.bundle, self.folder, described, judge, opponent, again)

    def _train(self, trainer: AdversarialSegmentationTrainer) -> None:
        stop = OrderlyStop(trainer)
        with signals_noted(stop.request):
            try:
                self.workflow.run()
            except Exception as error:
                if not (stop.requested and ended_by_signal(error)):
                    raise
                stop.stopped = True
        if stop.stopped:
            where = f"{'after' if stop.complete else 'in'} iteration {trainer.state.iteration}"
            path = self.checkpoints.save(trainer) if stop.complete else self.checkpoints.latest()
            raise Interrupted(
                f"stopped {where}; everything is saved in {path}. Run the same command with --resume to go on"
                if path
                else f"stopped {where}, before anything was saved; run the same command to start again"
            )

    def _require_end(self, trainer: AdversarialSegmentationTrainer) -> None:
        """A run is done when its last iteration is, and its checkpoint lies there: nothing else is believed."""
        done, planned, folder = trainer.state.iteration, trainer.iterations, self.checkpoints.folder
        if done < planned:
            raise TrainingFailed(
                f"the bundle's 'run' or a handler ended the training after iteration {done} of {planned}; expected all "
                f"of them. What was saved is in {folder}; go on with --resume, or lower epochs",
                "stopped-early",
            )
        if not planned or self.checkpoints.latest() is None:
            raise TrainingFailed(
                f"the training made {done} of {planned} iterations and left no checkpoint in {folder}; expected at "
                "least one. Look at epochs, iterations and train#handlers",
                "nothing-saved",
            )

    def _write(self, status: Literal["running", "done", "interrupted", "failed"], **outcome: Any) -> None:
        parser, trainer = self.workflow.parser, self.trainer
        datalist = Path(str(parser.get_parsed_content("datalist", default="")))
        adopted = self.bundle.adopted
        record = TrainingRecord(
            status=status,
            bundle={"name": self.bundle.name, "version": self.bundle.version},
            seed=parser.get_parsed_content("seed", default=None),
            inputs=TrainingInputs(str(datalist), sha256_file(datalist) if datalist.is_file() else None),
            overrides=self.given,
            configuration=as_json(parser.config),
            notes=() if adopted is None else adopted.notes,
            last_epoch=self.metrics.rows[-1] if self.metrics is not None and self.metrics.rows else None,
            **outcome,
        )
        if trainer is not None:
            conditions = self.checkpoints.conditions(trainer)
            record = replace(
                record,
                inputs=replace(record.inputs, cases_sha256=conditions.cases, init_sha256=conditions.start),
                configuration=conditions.configuration,
                device=str(trainer.state.device),
                precision=trainer.format.record(),
                label_notes=label_notes(self.checkpoints.datasets(trainer).values()),
                parts=self.checkpoints.parts_until(trainer.state.iteration),
            )
        record.write(self.folder)


def _accepted_before(found: DiscriminatorAcceptance, _: Any, sha256: str) -> DiscriminatorAcceptance:
    return replace(found, weights_sha256=sha256)


class OrderlyStop:
    """Ends a training between two iterations, where the state of the run is complete, once a signal has asked for it.

    At the last iteration of an epoch the stop waits for validation, so that nothing of the epoch is lost. With several
    processes a signal to one of them stops all after the same iteration.
    """

    def __init__(self, trainer: AdversarialSegmentationTrainer) -> None:
        self.trainer, self.requested, self.stopped = trainer, False, False
        self._done = trainer.state.iteration
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._stop)

    def request(self) -> None:
        """Stop when it can be done in order."""
        self.requested = True

    @property
    def complete(self) -> bool:
        """Whether the state of the run is complete: no iteration has begun and not ended."""
        return bool(self.trainer.state.iteration == self._done)

    def _after_iteration(self) -> None:
        self._done = self.trainer.state.iteration
        if self._done % self.trainer.state.epoch_length:
            self._stop()

    def _stop(self) -> None:
        if in_any_process(self.requested) and self._done < self.trainer.iterations:
            self.stopped = True
            self.trainer.terminate()
