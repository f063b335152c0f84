"""Workers as jobs of Slurm, through dask-jobqueue."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medseg.errors import MissingDependency, UsageError
from medseg.inference.cluster.extra import dask, distributed

try:
    import dask_jobqueue
    from dask_jobqueue.core import Job
    from dask_jobqueue.slurm import SLURMJob
except ImportError as error:
    raise MissingDependency("dask-jobqueue", "cluster", "--cluster slurm") from error

__all__ = ["slurm_jobs"]

_OURS = {"jobs"}
_KEYS = ".medseg-keys-"
_NEVER_PAUSE = [f"export DASK_DISTRIBUTED__WORKER__MEMORY__{what}=False" for what in ("TARGET", "SPILL", "PAUSE")]
"""Arrays of torch cannot be spilled, so that a worker that waits for memory to be freed would wait for ever."""


@contextmanager
def slurm_jobs(file: str, folder: Path) -> Iterator[Any]:
    """Keep a number of jobs running, each with one or more workers.

    Parameters
    ----------
    file
        JSON file: ``jobs``, their number, and settings of dask-jobqueue's ``SLURMCluster``; empty: those in Dask's
        configuration, and one job.
    folder
        The output folder, where the workers find their certificates.

    Raises
    ------
    UsageError
        If the settings make no sense.
    """
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
            cluster = dask_jobqueue.SLURMCluster(**settings)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{file or 'jobqueue.slurm'}: {error}; correct the settings") from error
        with cluster:
            cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
            yield cluster


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        what = f"{file} cannot be read as JSON ({type(error).__name__})"
        raise UsageError(f"{what}; give the settings as one object") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file}: found {type(found).__name__}, expected one JSON object with the settings")
    known = {name for part in (dask_jobqueue.SLURMCluster, SLURMJob, Job) for name in _parameters(part)}
    unknown = sorted(found.keys() - known - _OURS)
    if unknown:
        raise UsageError(f"{file}: found {', '.join(unknown)}, which dask-jobqueue does not know; see docs/cluster.md")
    return found


def _parameters(part: type) -> list[str]:
    return [name for kind in part.__mro__[:2] for name in inspect.signature(kind.__init__).parameters]  # type: ignore[misc]


@contextmanager
def _certificates(folder: Path) -> Iterator[distributed.Security]:
    """Certificates for this run, in a hidden folder that only this user can read; a killed run's are removed too."""
    for left in folder.glob(f"{_KEYS}*"):
        shutil.rmtree(left)
    made = distributed.Security.temporary()
    with tempfile.TemporaryDirectory(prefix=_KEYS, dir=folder.absolute()) as hidden:
        files = {"key": Path(hidden) / "key.pem", "cert": Path(hidden) / "certificate.pem"}
        files["key"].write_text(made.tls_worker_key)
        files["cert"].write_text(made.tls_worker_cert)
        pairs = {
            f"tls_{role}_{part}": str(path)
            for role in ("client", "scheduler", "worker")
            for part, path in files.items()
        }
        yield distributed.Security(require_encryption=True, tls_ca_file=str(files["cert"]), **pairs)
