from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.bundle.find import shipped_bundle
from medseg.cli import demo as command
from medseg.cli.main import app
from medseg.errors import UsageError
from medseg.ingest import read_volume
from medseg.workflows.demo import run_demo

assert command


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UsageError, match="other files"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_an_unknown_bundle_is_named_with_those_that_ship() -> None:
    with pytest.raises(UsageError, match="phantom_ct_segmentation"):
        shipped_bundle("spleen")


@pytest.mark.slow
def test_the_demo_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = CliRunner().invoke(app, ["demo", "--output", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.stdout)
    assert outcome["mean_dice"] >= 0.85
    assert (folder / "report.html").stat().st_size > 10_000
    run = json.loads((folder / "run.json").read_text())
    assert {case["status"] for case in run["cases"]} == {"done"}
    held_out = {item["case_id"] for item in json.loads((folder / "test.json").read_text())["test"]}
    assert {case["case_id"] for case in run["cases"]} == held_out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n_unpaired"] == 0
    assert metrics["structures"]["liver"]["metrics"]["dice"]["mean"] >= 0.9
    for case in run["cases"]:
        label = nib.load(folder / f"{case['case_id']}_seg.nii.gz")
        _, geometry, _ = read_volume(case["source"])
        assert label.shape == geometry.shape
        assert np.allclose(label.affine, geometry.affine, atol=1e-4)
