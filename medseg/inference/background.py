"""Jobs in the background that can be given up when they hang, and a watchdog that names what takes long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["BackgroundJob", "Watchdog"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


class BackgroundJob(Generic[T]):
    """A function that runs in a daemon thread at once.

    A thread of a pool would keep the process from ending when it hangs in a read; a daemon does not.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001  handed to whoever asks for the result
            self._error = error

    @property
    def finished(self) -> bool:
        """Whether the function has returned or raised."""
        return not self._thread.is_alive()

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the value, or raise what the function raised.

        Raises
        ------
        TimeoutError
            If the function takes longer; its thread is left behind.
        """
        # short waits let signals reach the main thread on every platform
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._thread.is_alive():
            self._thread.join(0.2)
            if deadline is not None and time.monotonic() > deadline and self._thread.is_alive():
                raise TimeoutError(f"no result after {timeout_s:.0f} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class Watchdog:
    """Logs the name of a case whose stage takes longer than ``limit_s``, once per stage."""

    def __init__(self, limit_s: float, report: Callable[[str], None] | None = None) -> None:
        self._limit_s = limit_s
        self._report = report or _log.warning

    @contextmanager
    def watch(self, case_id: str, stage: str) -> Iterator[None]:
        """Watch the body."""
        text = f"{case_id}: {stage} has taken more than {self._limit_s:.0f} s and is still running"
        timer = threading.Timer(self._limit_s, self._report, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
