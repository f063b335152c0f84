"""--cluster local:N: processes of this machine, reachable from nowhere else, that end with the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from medseg.inference import Options, run_batch
from tests.inference.volumes import blobs, grid, save

pytest.importorskip("distributed")
import psutil  # comes with it

from tests.inference.run.cluster_site import cases_of, exit_code, outputs_of, start_driver, wait_for


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(16):
        save(blobs((12, 12, 10), number), grid("oblique"), folder / f"case{number:02d}.nii.gz")
    return folder


def _workers() -> dict[int, set[str]]:
    """Processes that listen, below this one, and the addresses at which they do."""
    found: dict[int, set[str]] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            listening = {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:  # it ended meanwhile
            continue
        if listening:
            found[process.pid] = listening
    return found


def test_gives_what_this_process_gives_and_listens_on_loopback_only(
    thresholds: Path, many: Path, tmp_path: Path
) -> None:
    seen: dict[int, set[str]] = {}
    one = run_batch(thresholds, [many], tmp_path / "one", Options(precision="fp32"))

    def look(*_: object) -> None:
        seen.update(_workers())

    options = Options(precision="fp32", cluster="local:2")
    two = run_batch(thresholds, [many], tmp_path / "two", options, progress=look)
    assert one.complete
    assert two.complete
    assert outputs_of(tmp_path / "two") == outputs_of(tmp_path / "one")
    assert cases_of(tmp_path / "two") == cases_of(tmp_path / "one")
    assert len(seen) == 3  # this process with the scheduler, and two workers
    assert set().union(*seen.values()) == {"127.0.0.1"}
    wait_for(lambda: not _workers())


@pytest.mark.slow
def test_workers_end_with_a_killed_driver_and_the_next_run_goes_on(
    thresholds: Path, many: Path, tmp_path: Path
) -> None:
    options = Options(precision="fp32", cluster="local:2")
    driver = start_driver(thresholds, many, tmp_path / "out", options)
    wait_for(lambda: outputs_of(tmp_path / "out"))
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    assert exit_code(driver) == -signal.SIGKILL
    wait_for(lambda: not _workers())
    done = len(outputs_of(tmp_path / "out"))
    report = run_batch(thresholds, [many], tmp_path / "out", Options(precision="fp32"))
    assert report.complete
    assert len(report.cases) - report.content["summary"]["computed"] >= done - 2  # two were in hand
    assert not list((tmp_path / "out").glob(".medseg-partial-*"))
