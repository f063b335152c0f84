"""SIGINT and SIGTERM while a long job runs: end it here, stop it in order, or not now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from medseg.errors import Interrupted


@dataclass
class StopRequest:
    """Whether a signal has asked the job to stop."""

    requested: bool = False


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into :class:`Interrupted` in the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    with _handlers(stop):
        yield


@contextmanager
def signals_noted() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM in the main thread, for a job that looks where it can stop in order."""
    request = StopRequest()

    def note(_: int, __: FrameType | None) -> None:
        request.requested = True

    with _handlers(note):
        yield request


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Finish winding down even if the user presses Ctrl-C twice."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
