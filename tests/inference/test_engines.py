"""How the network is run follows a rule: the same command gives the same labels, whatever was measured before."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from monai.networks.nets import UNet

from medseg.errors import MissingDependency, UsageError
from medseg.inference import Options, run_batch
from medseg.inference.engines import REFERENCE, EngineChoice, build_engine, candidates, fold_norms
from medseg.inference.run.options import EngineName
from tests.inference.volumes import blobs, grid, save

OPENVINO = "openvino-fp32" in candidates()


def test_options_know_the_engines_of_every_device() -> None:
    known = set(get_args(EngineName)) - {"auto"}
    assert {*candidates("cpu"), *candidates("cuda"), *candidates("mps")} <= known


def _unet(norm: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=2, norm=norm).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(
    "name",
    [
        "torch-fp32-channels-last",
        pytest.param("openvino-fp32", marks=[pytest.mark.slow, pytest.mark.skipif(not OPENVINO, reason="no OpenVINO")]),
    ],
)
def test_every_engine_computes_what_the_reference_computes(name: str, norm: str) -> None:
    network, window = _unet(norm), torch.randn(2, 1, 16, 16, 8)
    expected = build_engine(REFERENCE, network)(window)
    torch.testing.assert_close(build_engine(name, network)(window), expected, rtol=1e-4, atol=1e-4)


def test_folding_removes_every_batch_norm_and_leaves_the_original_alone() -> None:
    network = _unet("batch")
    assert not any(isinstance(layer, torch.nn.BatchNorm3d) for layer in fold_norms(network).modules())
    assert any(isinstance(layer, torch.nn.BatchNorm3d) for layer in network.modules())


def test_the_rule_keeps_every_voxel_on_a_cpu_and_mixes_precision_on_cuda() -> None:
    by_rule = EngineChoice.by_rule
    for asked in (("cpu",), ("mps",), ("cpu", "fp32"), ("cuda", "fp32")):
        assert by_rule(*asked) == EngineChoice(REFERENCE)
    assert by_rule("cuda:1").engine == "cuda-fp16-autocast"
    assert by_rule("cpu", "bf16").engine == by_rule("cuda", "bf16").engine == "torch-bf16-channels-last"
    assert by_rule("cpu", engine="torch-fp32-channels-last").engine == "torch-fp32-channels-last"
    precisions = [by_rule("cuda", asked).precision for asked in ("auto", "fp32", "bf16")]
    assert precisions == ["amp-fp16", "fp32", "bf16"]
    with pytest.raises(UsageError, match="expected one of auto, fp32, bf16"):
        by_rule("cpu", "int4")
    with pytest.raises(UsageError, match="this machine has torch-fp32"):
        by_rule("cpu", engine="openvino-fp64")
    with pytest.raises(UsageError, match="give one of them"):
        by_rule("cpu", "bf16", "torch-fp32-channels-last")


@pytest.mark.parametrize("asked", [{"precision": "int8"}, {"windows": "large"}])
def test_what_older_versions_took_is_refused_with_what_to_do_instead(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is gone: .*--engine openvino-fp32"):
        Options(**asked)


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(MissingDependency, match="openvino"):
        build_engine("openvino-fp32", _unet("batch"))
    assert "openvino-fp32" not in candidates()


def test_a_long_run_computes_as_a_short_one_whatever_is_faster(
    thresholds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        save(blobs((12, 12, 12), number), grid("plain"), tmp_path / "images" / f"case{number}.nii.gz")
    clock = iter(range(10**9))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock) ** 2))  # every stage takes "hours"
    many = run_batch(thresholds, [tmp_path / "images"], tmp_path / "many")
    one = run_batch(thresholds, [tmp_path / "images" / "case0.nii.gz"], tmp_path / "one")
    for report in (many, one):
        assert report.content["engine"] == {"engine": REFERENCE, "windows": "bundle"}
        assert (report.content["device"], report.content["precision"]) == ("cpu", "fp32")
    assert (tmp_path / "one" / "case0_seg.nii.gz").read_bytes() == (tmp_path / "many" / "case0_seg.nii.gz").read_bytes()


def test_what_ran_is_said_first_and_stands_in_run_json(thresholds: Path, images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    asked = Options(engine="torch-fp32-channels-last")
    report = run_batch(thresholds, [images], tmp_path / "out", asked, announce=said.append)
    assert len(said) == 1
    assert re.match(r"computing on cpu \(\d+ threads\) in fp32 \(torch-fp32-channels-last\)", said[0])
    assert report.content["engine"]["engine"] == "torch-fp32-channels-last"
    assert report.content["options"]["device"] == "auto"
    again = run_batch(thresholds, [images], tmp_path / "out")
    assert again.content["summary"]["computed"] == 3  # another way of computing: nothing of the first is believed
