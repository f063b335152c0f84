"""What happened in each epoch: means of the losses, validation, time; as a table, in TensorBoard and in MLflow."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Evaluator

from medseg.errors import MissingDependency, UsageError
from medseg.files import write_json, write_text
from medseg.json_shape import TEXT, read_json
from medseg.tables import table_text
from medseg.training.distributed import is_first, over_processes
from medseg.training.record import settings_of
from medseg.training.trainer import AdversarialSegmentationTrainer

SCALARS = (
    "loss", "consistency_loss", "adversarial_loss", "adversarial_weight", "discriminator_loss",
    "real_accuracy", "fake_accuracy", "discriminator_accuracy", "discriminator_rested",
)  # fmt: skip
"""Figures of an iteration that are averaged over an epoch."""

EXPERIMENT = "medseg"
"""Where MLflow keeps the runs."""

_BALANCE = {
    "generator and discriminator": {
        "losses": ["Multiline", ["adversarial_loss", "discriminator_loss"]],
        "discriminator": ["Multiline", ["real_accuracy", "fake_accuracy", "discriminator_accuracy"]],
    }
}
"""Charts of how the networks stand against each other, in TensorBoard's tab of custom scalars."""

_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")
_logger = logging.getLogger("medseg.training")


def scalars(output: Any) -> dict[str, float]:
    """Figures of one iteration from ``engine.state.output``, decollated or not."""
    first = output[0] if isinstance(output, list) else output
    return {name: float(torch.as_tensor(first[name]).detach().mean()) for name in SCALARS if name in first}


class MetricsLogger:
    """Handler that writes ``metrics.csv``, TensorBoard events and, on request, MLflow metrics after each epoch.

    Losses and accuracies are means over all processes; validation is that of the first one, whose model is kept.
    Its rows are part of the checkpoints, so a resumed run continues the table without a gap or a repetition.
    List it after ``ValidationHandler`` and before ``Checkpoints``.

    The ``folder`` is that of the run; metrics of the ``evaluator``'s validation are added to the rows, the key metric
    also for each structure in ``label_names``, in the order of the channels without the background. ``mlflow`` is the
    address for :class:`~medseg.training.metrics_log.Tracking`; None for nowhere.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        evaluator: Evaluator | None = None,
        label_names: Sequence[str] = (),
        tensorboard: bool = True,
        mlflow: str | None = None,
    ) -> None:
        self.folder, self.evaluator, self.label_names = Path(folder), evaluator, tuple(label_names)
        self.rows: list[dict[str, float]] = []
        self.tensorboard, self.mlflow = tensorboard, mlflow
        self._tracking: Tracking | None = None
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._before = 0.0, 0.0
        self._started: tuple[float, float] | None = None

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        engine.stateful["journal"] = self
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch, engine)
        engine.add_event_handler(Events.COMPLETED, self._finish, engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def state_dict(self) -> dict[str, Any]:
        """Rows, unfinished sums and the time spent, as JSON (which any loader can read safely)."""
        state = {"rows": self.rows, "sums": self._sums, "counts": self._counts, "spent": self._spent()}
        return {"json": json.dumps(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        saved = json.loads(state["json"])
        self.rows = saved["rows"]
        self._sums, self._counts = defaultdict(float, saved["sums"]), defaultdict(int, saved["counts"])
        seconds, cpu_seconds = saved["spent"]
        self._before = seconds, cpu_seconds

    def _start(self) -> None:
        self._started = time.perf_counter(), time.process_time()
        if self.mlflow and is_first():
            self._tracking = Tracking(self.mlflow, self.folder)

    def _spent(self) -> tuple[float, float]:
        """Seconds and CPU seconds of the whole run."""
        if self._started is None:
            return self._before
        (seconds, cpu_seconds), (begun, cpu_begun) = self._before, self._started
        return seconds + time.perf_counter() - begun, cpu_seconds + time.process_time() - cpu_begun

    def _add(self, engine: AdversarialSegmentationTrainer) -> None:
        for name, value in scalars(engine.state.output).items():
            self._sums[name] += value
            self._counts[name] += 1

    def _finish_epoch(self, engine: AdversarialSegmentationTrainer) -> None:
        seconds, cpu_seconds = self._spent()
        row: dict[str, float] = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "learning_rate": engine.optimizer.param_groups[0]["lr"],
        }
        sums = over_processes([self._sums[name] for name in SCALARS], "SUM")
        counts = over_processes([float(self._counts[name]) for name in SCALARS], "SUM")
        row |= {name: sums[i] / counts[i] for i, name in enumerate(SCALARS) if counts[i]}
        if engine.adversary is not None:
            row["adversarial_share"] = engine.plan.share
        row |= self._validation(engine.state.epoch)
        self.rows.append(row)
        self._sums.clear()
        self._counts.clear()
        if not is_first():
            return
        rows = [_present(row) for row in self.rows]
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = ([row.get(name, "") for name in columns] for row in rows)
        write_text(self.folder / "metrics.csv", table_text(chain([columns], cells)))
        if self.tensorboard:
            write_scalars(self.folder, rows[-1])
        if self._tracking is not None:
            self._tracking.write(rows)
        _logger.info("%s", describe(row, engine.state.max_epochs))

    def _finish(self, engine: AdversarialSegmentationTrainer) -> None:
        if self._tracking is not None:  # ignite completes a run that was asked to stop, too
            state = engine.state
            self._tracking.close("FINISHED" if state.iteration >= engine.iterations else "KILLED")

    def _fail(self, engine: AdversarialSegmentationTrainer, error: BaseException) -> None:  # noqa: ARG002  ignite's
        if self._tracking is not None:
            self._tracking.close("FAILED")
        raise error  # a handler that does not raise it again would swallow it

    def _validation(self, epoch: int) -> dict[str, float]:
        if self.evaluator is None or self.evaluator.state.epoch != epoch:
            return {}
        state = self.evaluator.state
        found = {name: v if isinstance(v, int) else float(v) for name, v in state.metrics.items()}  # counts, figures
        details = state.metric_details.get(state.key_metric_name)
        if details is not None and self.label_names:
            means = torch.as_tensor(details).float().nanmean(0)
            pairs = zip(self.label_names, means.tolist(), strict=False)
            found.update({f"{state.key_metric_name}_{name.replace(' ', '_')}": value for name, value in pairs})
        return found


def describe(row: Mapping[str, float], epochs: int) -> str:
    """One row as a line for people."""
    shown = {name: value for name, value in _present(row).items() if name.startswith("val_") or name in SCALARS}
    figures = [f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in shown.items()]
    return f"epoch {row['epoch']:.0f}/{epochs}: {', '.join(figures)} ({row['seconds']:.0f} s)"


def _present(row: Mapping[str, float]) -> dict[str, float]:
    """A row without the figures that have no value, such as the distance to a structure that was missed everywhere."""
    return {name: value for name, value in row.items() if not math.isnan(value)}


def write_scalars(folder: Path, row: Mapping[str, float]) -> None:
    """Add the figures of an epoch to ``folder/tensorboard``; with a discriminator also the charts of the balance."""
    from torch.utils.tensorboard import SummaryWriter

    # opened for each epoch: nothing is lost when the process is killed, and no thread stays behind
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for name, value in row.items():
            if name not in ("epoch", "iteration"):
                writer.add_scalar(name, value, int(row["epoch"]))
        if "discriminator_loss" in row:
            writer.add_custom_scalars(_BALANCE)


def write_picture(folder: Path, name: str, picture: Path, epoch: int) -> None:
    """Add a picture that has been written already to ``folder/tensorboard``."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with Image.open(picture) as opened, SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_image(name, np.asarray(opened.convert("RGB")), epoch, dataformats="HWC")


class Tracking:
    """One run of MLflow for one output folder; a resumed training goes on in the same one.

    MONAI's ``MLFlowHandler`` would begin another run then, and stop the training with a server that stops answering:
    here what the server missed follows with the next epoch.

    ``uri`` is ``http://host:port`` of a server or ``sqlite:///path/mlflow.db``; without an answer there it is a
    ``UsageError``. The output ``folder`` keeps the run's id in ``mlflow.json``, and gives the run its name.
    """

    def __init__(self, uri: str, folder: str | PathLike[str]) -> None:
        # no word to the outside from a hospital's network, and no minutes of waiting for a server that is down
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingDependency("mlflow", "tracking", "tracking with MLflow") from error
        self._file = Path(folder) / "mlflow.json"
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._run = self._known_run() or self._new_run()
            self._logged = int(self._client.get_run(self._run).data.metrics.get("epoch", 0))
        except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
            raise UsageError(
                f"MLflow does not work with {uri!r} ({error}); expected http://host:port of a running server or "
                "sqlite:///path/mlflow.db; correct the setting mlflow, or leave it out"
            ) from error

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Add the epochs that are not there yet; ``rows`` are all rows of ``metrics.csv``."""
        from mlflow.entities import Metric

        for row in (row for row in rows if row["epoch"] > self._logged):
            now, step = int(time.time() * 1000), int(row["epoch"])
            metrics = [Metric(_NOT_ALLOWED.sub("_", name), float(value), now, step) for name, value in row.items()]
            if not self._attempt(self._client.log_batch, self._run, metrics):
                return
            self._logged = step

    def close(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """Mark the run as finished, as stopped before its end, or as failed."""
        self._attempt(self._client.set_terminated, self._run, status)

    def _attempt(self, call: Any, *arguments: Any) -> bool:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, hours of training are worth more
            _logger.warning("MLflow did not take the figures (%s); the training goes on, metrics.csv has them", error)
            return False
        return True

    def _known_run(self) -> str | None:
        from mlflow import MlflowException

        if not self._file.is_file():
            return None
        run = str(read_json(self._file, {"run_id!": TEXT}, "remove it: MLflow then gets a new run")["run_id"])
        try:
            self._client.update_run(run, "RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # it was kept somewhere else
        return run

    def _new_run(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        run = str(self._client.create_run(number, run_name=self._file.parent.name).info.run_id)
        for name, value in settings_of(self._file.parent).items():
            if name != "mlflow":  # the address may hold a password
                self._client.log_param(run, _NOT_ALLOWED.sub("_", name), value)
        write_json(self._file, {"run_id": run})
        return run
