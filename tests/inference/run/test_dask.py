"""A run on workers that are processes of their own: killed workers, killed drivers, cases that kill their worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import ExitCode, OutputLocked, UsageError
from medseg.inference import Options, run_batch
from tests.inference.volumes import blobs, grid, save

pytest.importorskip("distributed")
from tests.inference.run.cluster_site import ALLOWED_FAILURES, Site, cases_of, exit_code, outputs_of, wait_for

CASES = 9


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine volumes, of which one cannot be used."""
    folder = tmp_path_factory.mktemp("pictures")
    kinds = ("plain", "oblique", "sheared", "permuted")
    for number in range(CASES):
        image = blobs((18, 14, 10 + number % 4), number)
        if number == 5:
            image[3, 3, 3] = np.nan
        save(image, grid(kinds[number % 4]), folder / f"case{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def here(thresholds: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine alone makes of them."""
    folder = tmp_path_factory.mktemp("here")
    run_batch(thresholds, [pictures], folder, Options(precision="fp32"))
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    started = Site(tmp_path / "site")
    try:
        yield started
    finally:
        started.close()


def test_two_workers_give_what_one_machine_gives(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    held = site.hold("case0")
    driver = site.driver(thresholds, pictures, tmp_path / "out")
    wait_for(lambda: len({pid for _, pid in site.notes("reads")}) == 2)  # the first worker cannot do it all
    held.unlink()
    assert exit_code(driver) == ExitCode.INCOMPLETE
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    assert len(outputs_of(here)) == CASES - 1
    assert cases_of(tmp_path / "out") == cases_of(here)
    assert site.reads() == {f"case{number}": 1 for number in range(CASES)}
    assert sorted(pid for _, pid in site.notes("opens")) == sorted({pid for _, pid in site.notes("reads")})
    assert "medseg-" in site.logs()  # Dask names the tasks, but nothing of the cases
    for word in ("case0", "case5", str(pictures)):
        assert word not in site.logs()


def test_all_workers_compute_by_the_same_rule(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    driver = site.driver(thresholds, pictures, tmp_path / "out", precision="auto")
    assert exit_code(driver) == ExitCode.INCOMPLETE
    assert {name for name, _ in site.notes("opens")} == {"torch-fp32"}
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    (tmp_path / "out" / "case1_seg.nii.gz").unlink()
    again = run_batch(thresholds, [pictures], tmp_path / "out", Options(cluster=site.address))
    assert again.content["engine"]["engine"] == "torch-fp32"
    assert again.content["summary"]["computed"] == 1


def test_a_killed_worker_loses_nothing(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    held = site.hold("case3")
    driver = site.driver(thresholds, pictures, tmp_path / "out")
    victim = wait_for(lambda: dict(site.notes("reads")).get("case3"))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: site.reads()["case3"] == 2)
    held.unlink()
    assert exit_code(driver) == ExitCode.INCOMPLETE
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    assert cases_of(tmp_path / "out") == cases_of(here)
    reads = site.reads()  # the one before may be read again: its end was on the way when the worker died
    assert set(reads) == {f"case{number}" for number in range(CASES)}
    assert reads["case3"] == 2
    assert sum(reads.values()) <= CASES + 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["summary"]["workers_lost"] == 1


def test_a_killed_driver_goes_on_where_it_was(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    held = site.hold("case3")
    first = site.driver(thresholds, pictures, tmp_path / "out")
    wait_for(lambda: site.reads()["case3"] and outputs_of(tmp_path / "out"))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    second = site.driver(thresholds, pictures, tmp_path / "out")
    held.unlink()
    assert exit_code(second) == ExitCode.INCOMPLETE
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    assert cases_of(tmp_path / "out") == cases_of(here)
    assert set(site.reads()) == {f"case{number}" for number in range(CASES)}
    assert sum(site.reads().values()) <= CASES + 2  # each of the two workers had one case in hand
    assert max(site.reads().values()) <= 2


def test_a_case_that_kills_its_worker_is_given_up_and_no_other(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(pictures, tmp_path / "images"))
    save(blobs((18, 14, 10), 50), grid("plain"), images / "poison.nii.gz")
    assert exit_code(site.driver(thresholds, images, tmp_path / "out")) == ExitCode.INCOMPLETE
    cases = cases_of(tmp_path / "out")
    failed = {case["case_id"]: case["reason"] for case in cases if case["status"] == "failed"}
    assert failed == {"poison": "worker-died"}
    expected = [{**case, "source": ""} for case in cases_of(here)]
    assert [{**case, "source": ""} for case in cases if case["case_id"] != "poison"] == expected
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    reads = site.reads()
    assert reads.pop("poison") == 2 * (ALLOWED_FAILURES + 1)
    assert set(reads) == {f"case{number}" for number in range(CASES)}
    assert sum(reads.values()) <= CASES + 3  # a result still on a worker that the poison kills is computed again


def test_the_last_worker_that_dies_is_replaced(thresholds: Path, tmp_path: Path) -> None:
    for name in ("case0", "poison", "case1"):
        save(blobs((12, 12, 10), len(name)), grid("plain"), tmp_path / "images" / f"{name}.nii.gz")
    alone = Site(tmp_path / "alone", workers=1)
    try:
        options = Options(precision="fp32", cluster=alone.address)
        report = run_batch(thresholds, [tmp_path / "images"], tmp_path / "out", options)
    finally:
        alone.close()
    assert {case.case_id: case.reason for case in report.cases} == {
        "case0": None,
        "case1": None,
        "poison": "worker-died",
    }
    assert report.workers_lost == 2 * (ALLOWED_FAILURES + 1)


def test_sigterm_leaves_what_can_be_continued(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    held = site.hold("case3")
    driver = site.driver(thresholds, pictures, tmp_path / "out")
    wait_for(lambda: site.reads()["case3"] and outputs_of(tmp_path / "out"))
    with pytest.raises(OutputLocked):
        run_batch(thresholds, [pictures], tmp_path / "out", Options(cluster=site.address))
    driver.terminate()
    assert exit_code(driver) == ExitCode.INTERRUPTED
    assert 0 < len(cases_of(tmp_path / "out")) < CASES
    assert "run the same command again" in (tmp_path / "out.error").read_text()
    held.unlink()
    report = run_batch(thresholds, [pictures], tmp_path / "out", Options(precision="fp32", cluster=site.address))
    assert report.content["summary"]["computed"] < CASES
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    assert cases_of(tmp_path / "out") == cases_of(here)


def test_a_lost_scheduler_leaves_what_can_be_continued(
    site: Site, thresholds: Path, pictures: Path, here: Path, tmp_path: Path
) -> None:
    held = site.hold("case3")
    driver = site.driver(thresholds, pictures, tmp_path / "out")
    wait_for(lambda: site.reads()["case3"] and outputs_of(tmp_path / "out"))
    site.end_scheduler()
    assert exit_code(driver) == ExitCode.INTERRUPTED
    assert "does not answer" in (tmp_path / "out.error").read_text()
    held.unlink()
    run_batch(thresholds, [pictures], tmp_path / "out", Options(precision="fp32"))
    assert outputs_of(tmp_path / "out") == outputs_of(here)
    assert cases_of(tmp_path / "out") == cases_of(here)


def test_reading_that_hangs_is_given_up(site: Site, thresholds: Path, pictures: Path, tmp_path: Path) -> None:
    held = site.hold("case2")
    options = Options(precision="fp32", cluster=site.address, stall_s=1.0)
    report = run_batch(thresholds, [pictures / "case2.nii.gz"], tmp_path / "out", options)
    held.unlink()
    assert [(case.status, case.reason) for case in report.cases] == [("failed", "timeout")]


def test_workers_that_cannot_work_are_refused_with_a_reason(
    site: Site, thresholds: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.inference.run.options.medseg_version", lambda: "99.0")
    with pytest.raises(UsageError, match=r"the run uses 99\.0"):
        run_batch(thresholds, [pictures], tmp_path / "out", Options(cluster=site.address))
