"""A progress bar with an ETA on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medseg.cli._command import is_quiet

_LOG_SECONDS = 15.0


@contextmanager
def counted_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (done, total); ``total`` may grow, and 0 means that it is not known yet.

    Everything goes to stderr, so stdout stays free for results.
    """
    if is_quiet():
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bar(what) as update:
            yield update
    else:
        yield _Lines(what)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


class _Lines:
    """Prints a line when some time has passed, so that a log stays readable."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + _LOG_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            sys.stderr.write(f"{self._what}: {done}{f' of {total}' if total else ''}\n")
