"""What a person sees while a bundle trains: a bar with losses and the time left, or plain lines in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ignite.engine import Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medseg.training.metrics_log import MetricsLogger, describe, scalars

if TYPE_CHECKING:
    from medseg.training.trainer import AdversarialSegmentationTrainer


class ProgressDisplay:
    """Watcher that shows a progress bar on a terminal, and one line per epoch everywhere.

    It is a context: the bar goes when the context is left, however the training ended.

    Parameters
    ----------
    console
        Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._begun = 0.0
        self._first = 0

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start, engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._line, engine)
        engine.add_event_handler(Events.COMPLETED, self._bar.stop)

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _start(self, engine: AdversarialSegmentationTrainer) -> None:
        state = engine.state
        self._begun, self._first = time.monotonic(), state.iteration
        self._bar.add_task("training", total=engine.iterations, completed=state.iteration, epoch=state.epoch, losses="")
        self._bar.start()

    def _advance(self, engine: AdversarialSegmentationTrainer) -> None:
        losses = ", ".join(
            f"{name.replace('_', ' ')} {value:.3f}" for name, value in scalars(engine.state.output).items()
        )
        self._bar.update(
            self._bar.task_ids[0], completed=engine.state.iteration, epoch=engine.state.epoch, losses=losses
        )

    def _line(self, engine: AdversarialSegmentationTrainer) -> None:
        journal = engine.stateful.get("journal")
        if not isinstance(journal, MetricsLogger) or not journal.rows:
            return
        state = engine.state
        left = engine.iterations - state.iteration
        remaining = (time.monotonic() - self._begun) / max(1, state.iteration - self._first) * left
        self.console.print(f"{describe(journal.rows[-1], state.max_epochs)}, {remaining / 60:.1f} min left")
