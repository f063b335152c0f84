"""Killed at any moment and started again, a run ends with the same bytes as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.inference import Options, run_batch
from tests.inference.volumes import blobs, grid, save

ROOT = Path(__file__).parents[3]


def _inputs(folder: Path, cases: int, bad: int) -> Path:
    kinds = ("plain", "oblique", "sheared", "permuted")
    for number in range(cases):
        image = blobs((24, 20, 12 + number % 5), number)
        if number % (cases // bad) == 1:
            image[5, 5, 5] = np.nan
        save(image, grid(kinds[number % 4]), folder / f"case{number:03d}.nii.gz")
    return folder


def _killed(bundle: Path, images: Path, output: Path, kills: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.inference.run.forked_runs", bundle, images, output, str(kills), "7"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _same(thresholds: Path, tmp_path: Path, cases: int, bad: int, kills: int) -> None:
    images = _inputs(tmp_path / "images", cases, bad)
    undisturbed = run_batch(thresholds, [images], tmp_path / "whole", Options(precision="fp32"))
    result = _killed(thresholds, images, tmp_path / "killed" / "out", kills)
    assert result["killed"] >= 1
    assert result["broken"] == []
    assert result["exit"] == 0
    names = sorted(path.name for path in (tmp_path / "whole").glob("[!.]*_seg.nii.gz"))
    assert len(names) == sum(case.status == "done" for case in undisturbed.cases) == cases - bad
    assert names == sorted(path.name for path in (tmp_path / "killed" / "out").glob("[!.]*_seg.nii.gz"))
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / "out" / name).read_bytes()
    found = json.loads((tmp_path / "killed" / "out" / "run.json").read_text())["cases"]
    assert [(c["case_id"], c["status"], c["reason"]) for c in found] == [
        (c.case_id, c.status, c.reason) for c in undisturbed.cases
    ]
    assert not list((tmp_path / "killed" / "out").glob(".medseg-partial-*"))


@pytest.mark.slow
def test_killed_a_few_times(thresholds: Path, tmp_path: Path) -> None:
    _same(thresholds, tmp_path, cases=10, bad=2, kills=2)


@pytest.mark.slow
def test_killed_at_thirty_random_moments(thresholds: Path, tmp_path: Path) -> None:
    _same(thresholds, tmp_path, cases=200, bad=10, kills=30)
