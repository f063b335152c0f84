"""One run per output folder, and an orderly stop on SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

from medseg.files import locked_folder
from medseg.training.distributed import together

if TYPE_CHECKING:
    from medseg.training.trainer import AdversarialSegmentationTrainer

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``; the lock ends with the process, however it ends.

    Raises
    ------
    OutputLocked
        If another process holds it.
    """
    refusal = f"another process is training into {folder}; wait for it, or choose another folder with --output"
    with locked_folder(folder, refusal):
        yield


class StopRequest:
    """Turns a signal into a stop between two iterations, where the state of the run is complete.

    At the last iteration of an epoch the stop waits for validation, so that nothing of the epoch is lost. With several
    processes a signal to one of them stops all after the same iteration.
    """

    def __init__(self, engine: AdversarialSegmentationTrainer) -> None:
        self.engine = engine
        self.requested = self.stopped = False
        self._done = engine.state.iteration
        self._previous: dict[int, Any] = {}
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the signature of signal handlers
        self.requested = True

    @property
    def complete(self) -> bool:
        """Whether the state of the run is complete: no iteration has begun and not ended."""
        return self.engine.state.iteration == self._done

    def _after_iteration(self) -> None:
        self._done = self.engine.state.iteration
        if self.engine.state.iteration % self.engine.state.epoch_length:
            self._stop()

    def _stop(self) -> None:
        [wishes] = together(float(self.requested))
        if wishes and self.engine.state.iteration < self.engine.iterations:
            self.stopped = True
            self.engine.terminate()
