"""Where the workers are: processes started here, an address, or jobs of Slurm. Needs the extra ``cluster``."""

from __future__ import annotations

import inspect
import json
import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from medseg.errors import MissingDependency, UsageError
from medseg.inference.run.options import Place
from medseg.signals import signals_ignored

try:
    import dask
    import distributed
except ImportError as error:
    raise MissingDependency("dask.distributed", "cluster", "--cluster") from error

__all__ = ["ALLOWED_FAILURES", "connected", "distributed"]

ALLOWED_FAILURES = 1
"""After so many deaths of a worker with a case in hand the next one blames the case; of schedulers started here."""

_KEYS = ".medseg-keys-"
_BLAME = {"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}
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

_NEVER_PAUSE = [f"export DASK_DISTRIBUTED__WORKER__MEMORY__{what}=False" for what in ("TARGET", "SPILL", "PAUSE")]
"""Arrays of torch cannot be spilled, so that a worker that waits for memory to be freed would wait for ever."""


@contextmanager
def connected(place: Place, folder: Path) -> Iterator[distributed.Client]:
    """A client of the workers' scheduler; what was started here is ended afterwards.

    Raises
    ------
    UsageError
        If the scheduler cannot be reached, or a settings file makes no sense.
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
    """Keep what Dask logs of itself out of the log, unless everything is asked for."""
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
        with dask.config.set({**_BLAME, **_QUIET}), _forked_workers(), _local(int(place.detail)) as cluster:
            yield cluster
    elif place.kind == "slurm":
        with dask.config.set(_BLAME), _slurm_jobs(place.detail, folder) as cluster:
            yield cluster
    else:
        yield place.detail


def _client(target: Any) -> distributed.Client:
    try:
        return distributed.Client(target, set_as_default=False)
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
        multiprocessing.get_context("forkserver").set_forkserver_preload(["medseg.inference.run.dask", "distributed"])
        yield


@contextmanager
def _slurm_jobs(file: str, folder: Path) -> Iterator[Any]:
    """Keep a number of jobs running as a settings file says; without one, one job as Dask's configuration says."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise MissingDependency("dask-jobqueue", "cluster", "--cluster slurm") from error
    settings = _settings(Path(file)) if file else {}
    jobs = settings.pop("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise UsageError(f"{file}: found jobs = {jobs!r}, expected a positive number")
    prologue = settings.get("job_script_prologue") or dask.config.get("jobqueue.slurm.job-script-prologue", None) or []
    settings["job_script_prologue"] = [*_NEVER_PAUSE, *prologue]
    with _certificates(folder) as security:
        if "protocol" not in settings:
            settings = {"security": security, **settings}
        try:
            cluster = SLURMCluster(**settings)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{file or 'jobqueue.slurm'}: {error}; correct the settings") from error
        with cluster:
            cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
            yield cluster


def _settings(file: Path) -> dict[str, Any]:
    from dask_jobqueue.slurm import Job, SLURMCluster, SLURMJob

    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        what = f"{file} cannot be read as JSON ({type(error).__name__})"
        raise UsageError(f"{what}; give the settings as one object") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file}: found {type(found).__name__}, expected one JSON object with the settings")
    kinds = [kind for part in (SLURMCluster, SLURMJob, Job) for kind in part.__mro__[:2]]
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    if unknown := sorted(found.keys() - known - {"jobs"}):
        raise UsageError(f"{file}: found {', '.join(unknown)}, which dask-jobqueue does not know; see docs/cluster.md")
    return found


@contextmanager
def _certificates(folder: Path) -> Iterator[distributed.Security]:
    """Certificates for this run, in a hidden folder that only this user can read; a killed run's are removed too."""
    for left in folder.glob(f"{_KEYS}*"):
        shutil.rmtree(left)
    made = distributed.Security.temporary()
    with tempfile.TemporaryDirectory(prefix=_KEYS, dir=folder.absolute()) as hidden:
        key, certificate = Path(hidden, "key.pem"), Path(hidden, "certificate.pem")
        key.write_text(made.tls_worker_key)
        certificate.write_text(made.tls_worker_cert)
        pairs = {
            f"tls_{role}_{part}": str(file)
            for role in ("client", "scheduler", "worker")
            for part, file in (("key", key), ("cert", certificate))
        }
        yield distributed.Security(require_encryption=True, tls_ca_file=str(certificate), **pairs)
