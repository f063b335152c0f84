"""One command that labels images and scores them: `medseg evaluate --bundle`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import evaluate
from medseg.cli.main import app
from medseg.ingest import save_nifti
from medseg.tables import read_table
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid

__all__ = ["evaluate"]  # registers the command


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle that labels by thresholds, and three images with these labels, one of them in the test set."""
    bundle = write_bundle(tmp_path / "tiny", Design(transforms=ORIENTED))
    items = []
    for number in range(3):
        image = blobs((20, 18, 16)) + number
        save_nifti(image, grid("plain"), tmp_path / f"i{number}.nii.gz")
        save_nifti(((image > 10).astype(np.uint8) + (image > 30)), grid("plain"), tmp_path / f"l{number}.nii.gz")
        items.append({"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz", "fold": number})
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": items[:2], "test": items[2:]}))
    return bundle, datalist


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.output


def test_images_are_labelled_and_scored_and_what_is_there_is_kept(study: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, datalist = study
    out = tmp_path / "out"
    code, output = run(datalist, "--bundle", bundle, "--section", "training", "-o", out, "--device", "cpu")
    assert code == 0, output
    rows = read_table(out / "metrics.csv").rows
    assert {row["case_id"] for row in rows} == {"i0", "i1"}
    assert {float(row["dice"]) for row in rows} == {1.0}
    first = out / "predictions" / "i0_seg.nii.gz"
    before = first.stat().st_mtime_ns
    code, output = run(datalist, "--bundle", bundle, "-o", out, "--device", "cpu")  # all sections now
    assert code == 0, output
    assert {row["case_id"] for row in read_table(out / "metrics.csv").rows} == {"i0", "i1", "i2"}
    assert first.stat().st_mtime_ns == before


def test_wrong_usage_is_told(study: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, datalist = study
    code, output = run(datalist, "-o", tmp_path / "out")
    assert code == 2
    assert "found no REFERENCES" in output
    code, output = run(tmp_path, "--bundle", bundle, "-o", tmp_path / "out")
    assert code == 2
    assert "labels the images of one datalist" in output
