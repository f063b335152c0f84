"""``medseg infer``: exit codes, what it prints, and what it leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medseg.cli import infer as infer_command
from medseg.cli.main import app
from medseg.errors import ExitCode
from medseg.inference.run.state import locked
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, save
from tests.ingest.synthetic import make_series

assert infer_command


@pytest.fixture
def thresholds(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "thresholds", Design(transforms=ORIENTED))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(blobs((16, 12, 10)), grid("oblique"), tmp_path / "head.nii.gz")


def _infer(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["infer", *map(str, arguments)])


def test_a_file_becomes_a_label_map(thresholds: Path, image: Path, tmp_path: Path) -> None:
    result = _infer(thresholds, image, "-o", tmp_path / "out", "--profile")
    assert result.exit_code == ExitCode.DONE
    assert "1 done" in result.stdout
    assert "network" in result.stdout
    found, affine = load(tmp_path / "out" / "head_seg.nii.gz")
    assert found.any()
    np.testing.assert_allclose(affine, load(image)[1])


def test_json_prints_one_object(thresholds: Path, image: Path, tmp_path: Path) -> None:
    result = _infer(thresholds, image, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "run.json").read_text())


def test_a_bad_case_makes_the_exit_code_one(thresholds: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(image.read_bytes()[:200])
    result = _infer(thresholds, image, tmp_path / "bad.nii.gz", "-o", tmp_path / "out")
    assert result.exit_code == ExitCode.INCOMPLETE
    assert "bad: refused" in result.stdout


def test_wrong_calls_have_exit_code_two_and_one_line(thresholds: Path, image: Path, tmp_path: Path) -> None:
    for arguments in (
        (tmp_path / "no-bundle", image, "-o", tmp_path / "out"),
        (thresholds, tmp_path / "nothing.nii.gz", "-o", tmp_path / "out"),
        (thresholds, image, "-o", tmp_path / "out", "--write", "stl"),
        (thresholds, image, "-o", tmp_path / "out", "--roi", "1,2"),
        (thresholds, image, "-o", tmp_path / "out", "--mirror", "up"),
    ):
        result = _infer(*arguments)
        assert result.exit_code == ExitCode.USAGE, arguments
        assert result.stderr.startswith("medseg: ")
        assert "Traceback" not in result.stderr


def test_a_second_run_is_told_that_the_folder_is_taken(thresholds: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        result = _infer(thresholds, image, "-o", tmp_path / "out")
    assert result.exit_code == ExitCode.USAGE
    assert "another run" in result.stderr


def test_an_output_that_a_source_cannot_have_is_a_note(thresholds: Path, image: Path, tmp_path: Path) -> None:
    result = _infer(thresholds, image, "-o", tmp_path / "out", "--write", "nifti,seg")
    assert result.exit_code == ExitCode.DONE
    assert "no seg (no-dicom-source)" in result.stdout
    case = json.loads((tmp_path / "out" / "run.json").read_text())["cases"][0]
    assert case["not_written"]["seg"]["reason"] == "no-dicom-source"
    assert (case["status"], case["outputs"]) == ("done", ["head_seg.nii.gz"])


def test_what_no_case_can_have_is_told_before_the_first(thresholds: Path, image: Path, tmp_path: Path) -> None:
    series = make_series((0, 3, 6, 9)).write(tmp_path / "series")
    for source, kinds, told in (
        (image, "seg", "need DICOM images"),
        (series, "nifti,seg", "segment_codes"),
        (image, "nifti,doubt", "calibration"),
    ):
        result = _infer(thresholds, source, "-o", tmp_path / "out", "--write", kinds)
        assert result.exit_code == ExitCode.USAGE, kinds
        assert told in result.stderr
        assert not (tmp_path / "out" / "run.json").exists()


def test_nothing_of_an_untrusted_bundle_runs(thresholds: Path, image: Path, tmp_path: Path) -> None:
    path = thresholds / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'canary'}"}
    path.write_text(json.dumps(config))
    result = _infer(thresholds, image, "-o", tmp_path / "out")
    assert result.exit_code == ExitCode.USAGE
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif("MEDSEG_TEST_DATA" not in os.environ, reason="MEDSEG_TEST_DATA is not set")
def test_a_dicom_series_becomes_a_label_map_on_its_own_grid(thresholds: Path, tmp_path: Path) -> None:
    from medseg.ingest import read_volume

    source = Path(os.environ["MEDSEG_TEST_DATA"]) / "brain_mr_dicom" / "Study1" / "13_HCropVolume"
    result = _infer(thresholds, source, "-o", tmp_path / "out")
    assert result.exit_code == ExitCode.DONE, result.output
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert case["case_id"].startswith("series-")
    found, affine = load(tmp_path / "out" / case["outputs"][0])
    array, geometry, _ = read_volume(source)
    assert found.shape == geometry.shape
    np.testing.assert_allclose(affine, geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(found > 0, array > 10)
