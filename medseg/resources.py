"""What this process may use: cores, spread over a few processes with flat memory, and how large a volume may be.

A volume is refused unread where it is too large, so that a lying header cannot fill the memory.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

from medseg._safe_path import VARIABLE
from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_PER_WORKER = 3


def usable_cores() -> int:
    """Number of cores that this process may use (containers and schedulers often allow fewer than there are)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def safe_children() -> Iterator[None]:
    """Python processes that are started meanwhile import nothing from the current folder, which may be a stranger's.

    The command sees to that for all that it starts (:mod:`medseg._safe_path`); this is for those who use the library.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


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

    with safe_children():  # loky's resource tracker
        executor = get_reusable_executor(max_workers=workers, timeout=60, env={VARIABLE: "1"})
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            with safe_children():  # Python's own resource tracker
                pending.append(executor.submit(function, task))
            if len(pending) >= _TASKS_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


LIMIT_VARIABLE: Final = "MEDSEG_MAX_VOLUME_GIB"
_DEFAULT_GIB: Final = 4.0
_LARGEST_FOV_MM: Final = 10_000.0


def max_volume_bytes() -> int:
    """Largest array that a reader allocates, in bytes: 4 GiB, or what ``MEDSEG_MAX_VOLUME_GIB`` says."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gib = float(given) if given else _DEFAULT_GIB
    except ValueError as error:
        raise UsageError(f"{LIMIT_VARIABLE}={given!r} is not a number of GiB, such as 8") from error
    return int(gib * 1024**3)


def check_volume_size(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Refuse a shape whose array would exceed the limit (``too-large``)."""
    wanted, limit = math.prod(shape) * bytes_per_voxel, max_volume_bytes()
    if wanted > limit:
        sizes = "×".join(str(size) for size in shape)
        raise Refusal(
            "too-large",
            f"the header declares {sizes} voxels, {wanted / 1024**3:.1f} GiB; the limit is {limit / 1024**3:.1f} GiB; "
            f"if the file is genuine, raise {LIMIT_VARIABLE}",
        )


def check_field_of_view(geometry: Geometry) -> None:
    """Refuse a grid that is larger than any scanner (``no-geometry``): its unit is wrong."""
    if max(geometry.fov_mm) > _LARGEST_FOV_MM:
        raise Refusal(
            "no-geometry",
            f"the volume would span {max(geometry.fov_mm) / 1000:.0f} m; check the unit and the affine in the header",
        )
