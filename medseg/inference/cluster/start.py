"""Workers are started, or found at an address, and a client is connected to them."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from medseg.errors import UsageError
from medseg.inference.cluster.extra import dask, distributed
from medseg.inference.cluster.place import Place
from medseg.inference.signals import signals_ignored

__all__ = ["connected"]

_CONNECT_S = 30
_QUIET: dict[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "60s",
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,  # else large arrays get fresh pages every time
}
"""Processes of this machine show no pages and do not watch themselves, which takes some per cent of a core."""


@contextmanager
def connected(place: Place, folder: Path) -> Iterator[distributed.Client]:
    """A client of the workers' scheduler; what was started here is ended afterwards.

    Parameters
    ----------
    place
        Where the workers are.
    folder
        The output folder, where the workers of jobs find their certificates.

    Raises
    ------
    UsageError
        If the scheduler cannot be reached, or a settings file makes no sense.
    MissingDependency
        If a package of the extra ``cluster`` is not installed.
    """
    stack = ExitStack()
    try:
        stack.enter_context(_quiet(place))
        target = stack.enter_context(_scheduler(place, folder))
        yield stack.enter_context(closing(_client(target)))
    finally:
        with signals_ignored():
            stack.close()


@contextmanager
def _quiet(place: Place) -> Iterator[None]:
    """Keep what Dask logs of itself out of the log, unless everything is asked for.

    A worker that dies is reported by the batch, with the case; processes of this machine have nothing else to say.
    """
    logger = logging.getLogger("distributed")
    before = logger.level
    if not logging.getLogger("medseg").isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.CRITICAL if place.kind == "local" else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _scheduler(place: Place, folder: Path) -> Iterator[Any]:
    """What a client connects to."""
    if place.kind == "local":
        with dask.config.set(_QUIET), _forked_workers(), _local(int(place.detail)) as cluster:
            yield cluster
    elif place.kind == "slurm":
        from medseg.inference.cluster.slurm import slurm_jobs

        with slurm_jobs(place.detail, folder) as cluster:
            yield cluster
    else:
        yield place.detail


def _client(target: Any) -> distributed.Client:
    try:
        return distributed.Client(target, set_as_default=False, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        what = f"--cluster {target}: no Dask scheduler answers there ({type(error).__name__})"
        raise UsageError(f"{what}; start one with: dask scheduler") from error


def _local(processes: int) -> distributed.LocalCluster:
    """Processes on this machine that share its threads, reachable only from it and only with its own certificates."""
    return distributed.LocalCluster(
        n_workers=processes,
        threads_per_worker=max(1, torch.get_num_threads() // processes),
        host="127.0.0.1",
        security=True,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # a free port instead of 8787, which may be taken
        memory_limit=0,  # arrays of torch cannot be spilled: stopping a worker because of them helps nobody
        silence_logs=logging.CRITICAL,  # in the workers
    )


@contextmanager
def _forked_workers() -> Iterator[None]:
    """Fork workers from one process that has imported everything: they start at once, also in place of a dead one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context()  # sets Dask's own list of imports, which ours replaces
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["medseg.inference.cluster.worker", "distributed"])
        yield
