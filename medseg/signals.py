"""SIGINT and SIGTERM while a long job runs: end it here, stop it in order, or not now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medseg.errors import Interrupted


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into :class:`Interrupted` in the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    with _handlers(stop):
        yield


@contextmanager
def signals_noted(note: Callable[[], None]) -> Iterator[None]:
    """Call ``note`` at SIGINT and SIGTERM in the main thread, for a job that looks where it can stop in order."""
    with _handlers(lambda _, __: note()):
        yield


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
