"""Largest parts, small parts and holes: written into a bundle as MONAI's transforms, and done as MONAI does them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli.main import app, load_commands
from medseg.errors import UsageError
from medseg.inference import Predictor
from medseg.inference.config import read_inference_config
from medseg.planning import Cleaning, set_cleaning
from tests.inference.bundles import ORIENTED, Design, run_monai, write_bundle
from tests.inference.volumes import load, meta_tensor, save

pytest.importorskip("skimage", reason="MONAI's cleaning needs scikit-image")

AFFINE = np.diag([2.0, 2.0, 1.0, 1.0])  # voxels of 4 mm³

load_commands()


def scene() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An image that the thresholding network labels 1 above 10 and 2 above 30, and these labels."""
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[4:12, 4:12, 4:12] = 1
    labels[7, 7, 7] = 0  # a hole of 4 mm³
    labels[14:20, 14:20, 14:20] = 2
    labels[2, 2, 20] = 1  # an island of 4 mm³
    labels[20:22, 4:7, 4:9] = 1  # an island of 120 mm³
    labels[12, 5, 5] = 2  # a piece of another structure that touches the first
    return np.array([0, 20, 40], np.float32)[labels], labels


def made_by(bundle: Path) -> NDArray[np.integer]:
    return Predictor(Bundle.open(bundle)).predict(meta_tensor(scene()[0], AFFINE)).label_map


def test_each_does_what_it_says(tmp_path: Path) -> None:
    bundle, labels = write_bundle(tmp_path / "tiny", Design(transforms=ORIENTED)), scene()[1]
    assert np.array_equal(made_by(bundle), labels)
    set_cleaning(Bundle.open(bundle), Cleaning(fill_holes=("all",)))
    assert np.flatnonzero(made_by(bundle) != labels).size == 1
    assert made_by(bundle)[7, 7, 7] == 1
    set_cleaning(Bundle.open(bundle), Cleaning(smallest_ml=0.1))  # in place of the first
    without = labels.copy()
    without[2, 2, 20] = 0
    assert np.array_equal(made_by(bundle), without)
    set_cleaning(Bundle.open(bundle), Cleaning(smallest_ml=0.121))
    without[20:22, 4:7, 4:9] = 0
    assert np.array_equal(made_by(bundle), without)
    set_cleaning(Bundle.open(bundle), Cleaning(keep_largest=("all",)))
    without[12, 5, 5] = 0
    assert np.array_equal(made_by(bundle), without)
    set_cleaning(Bundle.open(bundle), Cleaning())
    assert np.array_equal(made_by(bundle), labels)


def test_monai_does_the_same_with_the_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(transforms=ORIENTED))
    steps = set_cleaning(Bundle.open(bundle), Cleaning(("all",), 0.1, ("all",)))
    assert [step["_target_"] for step in steps] == [
        "FillHolesd", "RemoveSmallObjectsd", "KeepLargestConnectedComponentd",
    ]  # fmt: skip
    config = read_inference_config(Bundle.open(bundle))
    assert config.post.written is None  # still chunk by chunk
    assert len(config.post.clean_source) == 3
    save(scene()[0], AFFINE, tmp_path / "images" / "a.nii.gz")
    run_monai(bundle, tmp_path / "images", tmp_path / "monai")
    assert np.array_equal(load(tmp_path / "monai" / "a_seg.nii.gz")[0], made_by(bundle))


def test_the_command(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(transforms=ORIENTED))
    name = Bundle.open(bundle).labels[2]
    asked = ["bundle", "clean", str(bundle), "--keep-largest", name, "--json", "--quiet"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"][0]["applied_labels"] == [2]
    before = (bundle / "configs" / "inference.json").read_text()
    with pytest.raises(UsageError, match=f"no structure is called 'kidney'; expected some of .*{name}"):
        set_cleaning(Bundle.open(bundle), Cleaning(keep_largest=("kidney",)))
    with pytest.raises(UsageError, match="at least 0"):
        Cleaning(smallest_ml=-1.0)
    assert (bundle / "configs" / "inference.json").read_text() == before
