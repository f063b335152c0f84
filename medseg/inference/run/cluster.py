"""Where the workers are: processes started here, an address, or jobs of Slurm. Needs the extra ``cluster``."""

from __future__ import annotations

import inspect
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
from medseg.json_shape import TEXT, Spec, read_json, whole
from medseg.resources import safe_children
from medseg.signals import signals_ignored

try:
    import dask
    import distributed
except ImportError as error:
    raise MissingDependency("dask.distributed", "cluster", "--cluster") from error

__all__ = ["connected", "distributed"]

_KEYS = ".medseg-keys-"
_SETTINGS: Spec = {"jobs": whole(1, 100_000), "job_script_prologue": [TEXT]}
_BLAME = {"distributed.scheduler.allowed-failures": 1}
"""After so many deaths of a worker with a case in hand the next one blames the case; of schedulers started here."""

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

_PROLOGUE = [
    "export PYTHONSAFEPATH=1",
    *(f"export DASK_DISTRIBUTED__WORKER__MEMORY__{what}=False" for what in ("TARGET", "SPILL", "PAUSE")),
]
"""Nothing is imported from the folder that a job starts in. Arrays of torch cannot be spilled, so that a worker that
waits for memory to be freed would wait for ever."""


@contextmanager
def connected(place: Place, folder: Path) -> Iterator[distributed.Client]:
    """A client of the workers' scheduler; what was started here is ended afterwards.

    A scheduler that cannot be reached, or a settings file that makes no sense, is a ``UsageError``.
    """
    stack, logger = ExitStack(), logging.getLogger("distributed")
    stack.callback(logger.setLevel, logger.level)
    try:
        if not logging.getLogger("medseg").isEnabledFor(logging.DEBUG):  # what Dask logs of itself
            logger.setLevel(logging.CRITICAL if place.kind == "local" else logging.WARNING)
        target: Any = place.detail
        if place.kind != "scheduler":
            started = _local(int(target)) if place.kind == "local" else _slurm_jobs(target, folder)
            target = stack.enter_context(started)
        try:
            client = distributed.Client(target, set_as_default=False)
        except (OSError, ValueError) as error:
            what = f"--cluster {target}: no Dask scheduler answers there ({type(error).__name__})"
            raise UsageError(f"{what}; start one with: dask scheduler") from error
        yield stack.enter_context(closing(client))
    finally:
        with signals_ignored():
            stack.close()


@contextmanager
def _local(processes: int) -> Iterator[distributed.LocalCluster]:
    """Processes on this machine that share its threads, reachable only from it and only with its own certificates."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    method = {"distributed.worker.multiprocessing-method": "forkserver"} if forks else {}
    with safe_children(), dask.config.set({**_BLAME, **_QUIET, **method}):
        if forks:  # from one process that has imported everything, workers start at once, in place of a dead one too
            distributed.utils.get_mp_context()  # sets Dask's own list of imports, which ours replaces
            server = multiprocessing.get_context("forkserver")
            server.set_forkserver_preload(["medseg.inference.run.dask", "distributed"])
        with distributed.LocalCluster(
            n_workers=processes,
            threads_per_worker=max(1, torch.get_num_threads() // processes),
            host="127.0.0.1",
            security=True,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # a free port instead of 8787, which may be taken
            memory_limit=0,  # arrays of torch cannot be spilled: stopping a worker because of them helps nobody
            silence_logs=logging.CRITICAL,  # in the workers
        ) as cluster:
            yield cluster


@contextmanager
def _slurm_jobs(file: str, folder: Path) -> Iterator[Any]:
    """Keep a number of jobs running as a settings file says; without one, one job as Dask's configuration says."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise MissingDependency("dask-jobqueue", "cluster", "--cluster slurm") from error
    settings = _settings(Path(file)) if file else {}
    jobs = settings.pop("jobs", 1)
    prologue = settings.get("job_script_prologue") or dask.config.get("jobqueue.slurm.job-script-prologue", None) or []
    settings["job_script_prologue"] = [*_PROLOGUE, *prologue]
    with dask.config.set(_BLAME), _certificates(folder) as security:
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

    found: dict[str, Any] = read_json(file, _SETTINGS, "give the settings as one JSON object, see docs/cluster.md")
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
        files = {part: Path(hidden, f"{part}.pem") for part in ("key", "cert")}
        files["key"].write_text(made.tls_worker_key)
        files["cert"].write_text(made.tls_worker_cert)
        roles = ("client", "scheduler", "worker")
        pairs = {f"tls_{role}_{part}": str(file) for role in roles for part, file in files.items()}
        yield distributed.Security(require_encryption=True, tls_ca_file=str(files["cert"]), **pairs)
