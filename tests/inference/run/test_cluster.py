"""--cluster slurm, with commands in the place of Slurm's that run a job as a process of this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from medseg.inference import Options, run_batch
from tests.inference.volumes import blobs, grid, save

pytest.importorskip("dask_jobqueue")
from tests.inference.run.cluster_site import cases_of, outputs_of, wait_for

ROOT = Path(__file__).parents[3]

SBATCH = """#!/bin/sh
cp "$1" "$JOBS/script-$$"
setsid sh "$JOBS/script-$$" >"$JOBS/log-$$" 2>&1 &
echo $! >>"$JOBS/submitted"
echo "Submitted batch job $!"
"""

SCANCEL = """#!/bin/sh
echo $1 >>"$JOBS/cancelled"
kill -TERM -$1
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where the stand-ins for Slurm's commands write down what they are asked for."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("JOBS", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield folder
    for job in _lines(folder / "submitted"):
        with suppress(ProcessLookupError):
            os.killpg(int(job), signal.SIGKILL)


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _is_gone(job: str) -> bool:
    try:
        os.killpg(int(job), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_jobs_do_the_work_and_end_with_the_run(thresholds: Path, jobs: Path, tmp_path: Path) -> None:
    for number in range(4):
        save(blobs((18, 14, 10), number), grid("oblique"), tmp_path / "images" / f"case{number}.nii.gz")
    settings = {"jobs": 1, "cores": 1, "processes": 1, "memory": "2GB", "interface": "lo", "python": sys.executable}
    (tmp_path / "jobs.json").write_text(json.dumps(settings))
    run_batch(thresholds, [tmp_path / "images"], tmp_path / "here", Options(precision="fp32"))
    options = Options(precision="fp32", cluster=f"slurm:{tmp_path / 'jobs.json'}")
    report = run_batch(thresholds, [tmp_path / "images"], tmp_path / "out", options)
    assert report.complete
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "here")
    assert cases_of(tmp_path / "out") == cases_of(tmp_path / "here")
    submitted = _lines(jobs / "submitted")
    assert len(submitted) == 1
    assert _lines(jobs / "cancelled") == submitted
    wait_for(lambda: _is_gone(submitted[0]))
    script = next(jobs.glob("script-*")).read_text()
    assert "tls://127.0.0.1" in script
    assert "BEGIN" not in script  # the key is in a file that only this user can read
    assert not list((tmp_path / "out").glob(".medseg-keys-*"))
