"""Work spread over a few processes, with a bounded number of tasks under way, so that memory stays flat."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["bounded_map", "usable_cores"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_PER_WORKER = 3


def usable_cores() -> int:
    """Number of cores that this process may use (containers and schedulers often allow fewer than there are)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bounded_map(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results in the order of the tasks; tasks are drawn only as results are taken.

    Parameters
    ----------
    function
        A function at module level; it runs in another process unless ``workers`` is 1.
    tasks
        May be longer than memory: at most three per worker are held.
    workers
        Number of processes. They are fresh interpreters that do not import the caller's main module, so a script
        needs no ``if __name__ == "__main__"`` (joblib's loky executor).
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    from joblib.externals.loky import get_reusable_executor  # it is not needed for small trees

    executor = get_reusable_executor(max_workers=workers, timeout=60)
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(function, task))
            if len(pending) >= _TASKS_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
