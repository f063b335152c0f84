"""What happened in each epoch: means of the losses, validation, time; as a table, in TensorBoard and in MLflow."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator

from medseg.files import write_text
from medseg.training.events import write_scalars
from medseg.training.parallel import is_first
from medseg.training.tracking import Tracking

if TYPE_CHECKING:
    from medseg.training.engine import AdversarialSegmentationTrainer

__all__ = ["SCALARS", "Journal", "scalars"]

SCALARS = (
    "loss",
    "consistency_loss",
    "adversarial_loss",
    "discriminator_loss",
    "real_accuracy",
    "fake_accuracy",
    "discriminator_accuracy",
    "discriminator_rested",
)
"""Figures of an iteration that are averaged over an epoch."""

_logger = logging.getLogger("medseg.training")


def scalars(output: Any) -> dict[str, float]:
    """Figures of one iteration from ``engine.state.output``, decollated or not."""
    first = output[0] if isinstance(output, list) else output
    return {name: float(torch.as_tensor(first[name]).detach().mean()) for name in SCALARS if name in first}


class Journal:
    """Handler that writes ``metrics.csv``, TensorBoard events and, on request, MLflow metrics after each epoch.

    Its rows are part of the checkpoints, so a resumed run continues the table without a gap or a repetition.
    List it after ``ValidationHandler`` and before ``Checkpoints``.

    Parameters
    ----------
    folder
        Output folder of the run.
    evaluator
        The validation whose metrics are added to the rows.
    label_names
        Names of the structures, in the order of the channels without the background; the key metric is also
        given for each of them.
    tensorboard
        Whether to write TensorBoard events.
    mlflow
        Where MLflow keeps the figures, see :class:`~medseg.training.tracking.Tracking`; None for nowhere.
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
        self._started = 0.0, 0.0

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        engine.stateful["journal"] = self
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch, engine)
        engine.add_event_handler(Events.COMPLETED, self._finish, engine)

    def state_dict(self) -> dict[str, Any]:
        """Rows, unfinished sums and the time spent, as JSON (which any loader can read safely)."""
        state = {"rows": self.rows, "sums": self._sums, "counts": self._counts, "spent": self._spent()}
        return {"json": json.dumps(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        saved = json.loads(state["json"])
        self.rows = saved["rows"]
        self._sums = defaultdict(float, saved["sums"])
        self._counts = defaultdict(int, saved["counts"])
        seconds, cpu_seconds = saved["spent"]
        self._before = seconds, cpu_seconds

    def _start(self) -> None:
        self._started = time.perf_counter(), time.process_time()
        if self.mlflow and is_first():
            self._tracking = Tracking(self.mlflow, self.folder)

    def _spent(self) -> tuple[float, float]:
        if self._started == (0.0, 0.0):
            return self._before
        now = time.perf_counter(), time.process_time()
        return self._before[0] + now[0] - self._started[0], self._before[1] + now[1] - self._started[1]

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
        row.update({name: self._sums[name] / self._counts[name] for name in SCALARS if self._counts[name]})
        if engine.adversary is not None:
            row["adversarial_weight"] = engine.adversary.schedule.weight_at(engine.state.iteration)
        row.update(self._validation(engine.state.epoch))
        self.rows.append(row)
        self._sums.clear()
        self._counts.clear()
        if not is_first():
            return
        write_text(self.folder / "metrics.csv", _table(self.rows))
        if self.tensorboard:
            write_scalars(self.folder, _present(row))
        if self._tracking is not None:
            self._tracking.write([_present(row) for row in self.rows])
        _logger.info("%s", describe(row, engine.state.max_epochs))

    def _finish(self, engine: AdversarialSegmentationTrainer) -> None:
        if self._tracking is not None:  # ignite completes a run that was asked to stop, too
            state = engine.state
            self._tracking.close(finished=state.iteration >= state.max_epochs * state.epoch_length)

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


def _present(row: Mapping[str, float]) -> dict[str, float]:
    """A row without the figures that have no value, such as the distance to a structure that was missed everywhere."""
    return {name: value for name, value in row.items() if not math.isnan(value)}


def describe(row: Mapping[str, float], epochs: int) -> str:
    """One row as a line for people."""
    shown = {name: value for name, value in _present(row).items() if name.startswith("val_") or name in SCALARS}
    figures = [f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in shown.items()]
    return f"epoch {row['epoch']:.0f}/{epochs}: {', '.join(figures)} ({row['seconds']:.0f} s)"


def _table(rows: Sequence[Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_present(row) for row in rows)
    return text.getvalue()
