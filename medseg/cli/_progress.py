"""What a person sees while a command works: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from medseg.cli._app import is_quiet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from medseg.training.trainer import AdversarialSegmentationTrainer

_LOG_SECONDS = 15.0


@contextmanager
def counted_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (done, total); ``total`` may grow, and 0 means that it is not known yet.

    Everything goes to stderr, so stdout stays free for results.
    """
    if is_quiet():
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        from medseg.cli._console import PlainConsole

        with progress_bar(PlainConsole(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total or None)
    else:
        yield _Lines(what)


class TrainingProgress:
    """Watcher of a training: a bar with its losses on a terminal, and one line per epoch everywhere.

    It is a context: the bar goes when the context is left, however the training ended.
    """

    def __init__(self, console: Console) -> None:
        self.console, self._bar = console, progress_bar(console, fields=("losses",))
        self._begun, self._first = 0.0, 0
        self._open = ExitStack()
        self._judged: Callable[[int, int], None] | None = None

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        from ignite.engine import Events

        from medseg.training.trainer import JudgeEvents

        engine.add_event_handler(Events.STARTED, self._start, engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._line, engine)
        engine.add_event_handler(Events.COMPLETED, self._bar.stop)
        engine.add_event_handler(JudgeEvents.PROGRESSED, self._judge, engine)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._bar.stop()

    def _start(self, engine: AdversarialSegmentationTrainer) -> None:
        self._begun, self._first = time.monotonic(), engine.state.iteration
        for task in self._bar.task_ids:  # of a network that was trained before
            self._bar.remove_task(task)
        self._bar.add_task("", total=engine.iterations, completed=self._first, losses="")
        self._bar.start()

    def _advance(self, engine: AdversarialSegmentationTrainer) -> None:
        from medseg.training.metrics_log import scalars

        figures = scalars(engine.state.output).items()
        losses = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures)
        done, epoch = engine.state.iteration, f"epoch {engine.state.epoch}"
        self._bar.update(self._bar.task_ids[0], completed=done, description=epoch, losses=losses)

    def _judge(self, engine: AdversarialSegmentationTrainer) -> None:
        done, total = engine.state.judge_steps
        if self._judged is None:
            self.console.print(f"the judge learns from the training cases, in {total} steps")
            self._judged = self._open.enter_context(counted_progress("steps of the judge"))
        self._judged(done, total)
        if done == total:
            self._open.close()

    def _line(self, engine: AdversarialSegmentationTrainer) -> None:
        from medseg.training.metrics_log import MetricsLogger, describe

        metrics, state = engine.stateful.get("journal"), engine.state
        if isinstance(metrics, MetricsLogger) and metrics.rows:
            left = engine.iterations - state.iteration
            seconds = (time.monotonic() - self._begun) / max(1, state.iteration - self._first) * left
            self.console.print(f"{describe(metrics.rows[-1], state.max_epochs)}, {seconds / 60:.1f} min left")


def progress_bar(console: Console, *, transient: bool = False, fields: tuple[str, ...] = ()) -> Progress:
    """The one bar of all commands; ``fields`` are shown behind the time left. Nothing where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    more = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in fields]
    return Progress(*columns, *more, console=console, transient=transient, disable=not console.is_terminal)


class _Lines:
    """Prints a line when some time has passed, so that a log stays readable."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + _LOG_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            sys.stderr.write(f"{self._what}: {done}{f' of {total}' if total else ''}\n")
