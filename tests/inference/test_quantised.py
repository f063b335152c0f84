"""int8: quantised once for all processes of a run, measured, and refused with what to install where it is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from medseg.errors import MissingDependency
from medseg.inference import Predictor
from medseg.inference.quantised import QuantisedEngine, can_quantise, forget_quantised, place_of
from tests.inference.bundles import ORIENTED, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, meta_tensor

needs_nncf = pytest.mark.skipif(not can_quantise(), reason="OpenVINO or nncf is not installed")


def test_it_says_what_to_install(thresholds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"nncf", "openvino"} else find(name))
    with pytest.raises(MissingDependency, match="openvino"):
        Predictor(thresholds, precision="int8")


def test_a_fresh_start_forgets_what_was_learnt(tmp_path: Path) -> None:
    place_of(tmp_path, "ab" * 32).mkdir()
    (tmp_path / "case_seg.nii.gz").touch()
    forget_quantised(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["case_seg.nii.gz"]


@pytest.mark.slow
@needs_nncf
def test_integers_come_close_and_every_process_uses_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 3, (8, 16, 16), (2, 2), norm="batch").eval()
    windows = [torch.randn(1, 1, 16, 16, 16) for _ in range(4)]
    with torch.inference_mode():
        expected = network(windows[0])
    first = QuantisedEngine(network, tmp_path / "int8")
    assert not first.ready
    first.calibrate(windows)
    found = first(windows[0])
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    other = QuantisedEngine(network, tmp_path / "int8")
    other.calibrate([window * 100 for window in windows])  # too late: what is there stays
    assert torch.equal(other(windows[0]), found)
    assert other(torch.randn(2, 1, 32, 16, 16)).shape == (2, 3, 32, 16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]
    assert capsys.readouterr().out == ""
    assert sys.modules["openvino_telemetry"] is None  # nothing is reported to anyone


@pytest.mark.slow
@needs_nncf
def test_a_bundle_runs_in_integers_as_asked(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "unet", Design(network=UNET, transforms=ORIENTED))
    image = meta_tensor(blobs((24, 22, 20)), grid("oblique"))
    expected = Predictor(bundle).predict(image).label_map
    predictor = Predictor(bundle, precision="int8", folder=tmp_path / "out")
    found = predictor.predict(image).label_map
    assert predictor.choice.engine == "openvino-int8"
    assert np.mean(found == expected) > 0.9
    again = Predictor(bundle, precision="int8", folder=tmp_path / "out").predict(image).label_map
    np.testing.assert_array_equal(found, again)
