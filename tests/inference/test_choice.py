"""A faster way is taken only where it gives the same labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from medseg.inference import Options, Predictor, choice, networks, run_batch
from medseg.inference.choice import Choice, agreement
from medseg.inference.engines import REFERENCE, build_engine, candidates, fixed_engine, fold_norms
from tests.inference.bundles import ORIENTED, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, meta_tensor, save

OPENVINO = "openvino-fp32" in candidates()


@pytest.fixture(autouse=True)
def _torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling with OpenVINO takes seconds; one slow test does it."""
    monkeypatch.setattr(choice, "candidates", lambda _: [REFERENCE, "torch-fp32-channels-last"])


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


def test_agreement_is_the_smallest_dice() -> None:
    a, b = np.zeros((4, 4), int), np.zeros((4, 4), int)
    assert agreement(a, b) is None
    a[0], b[0] = 1, 1
    a[1, :2], b[1, :1] = 2, 2
    assert agreement(a, b) == pytest.approx(2 / 3)
    assert agreement(a, a) == 1.0


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


def _sharp_edges(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value * 3 for key, value in state.items()}


def test_tuning_keeps_the_labels(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "thresholds", Design(transforms=ORIENTED))
    image = meta_tensor(blobs((40, 38, 20)), grid("oblique"))
    predictor = Predictor(bundle)
    expected = predictor.predict(image).label_map
    chosen = predictor.tune(image, case_id="case")
    assert chosen.measured_on == "case"
    if chosen.windows == "large":
        assert chosen.agreement is not None
        assert chosen.agreement >= 0.999
    np.testing.assert_array_equal(predictor.predict(image).label_map, expected)


def test_tuning_refuses_windows_that_change_the_labels(tmp_path: Path) -> None:
    # instance norms see another mean in a larger window: with random weights the labels change a lot
    bundle = write_bundle(tmp_path / "unet", Design(network=UNET, transforms=ORIENTED), _sharp_edges)
    predictor = Predictor(bundle)
    chosen = predictor.tune(meta_tensor(blobs((40, 38, 20)), grid("plain")))
    assert chosen.windows == "bundle"


def test_nothing_is_measured_where_it_would_take_longer_than_it_saves(thresholds: Path) -> None:
    chosen = Predictor(thresholds).tune(meta_tensor(blobs((20, 20, 20)), grid("plain")), case_id="a", waiting=2)
    assert chosen == Choice()


def test_the_choice_is_made_once_and_kept(tmp_path: Path, thresholds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        save(blobs((12, 12, 12), number), grid("plain"), tmp_path / "images" / f"case{number}.nii.gz")
    calls: list[str] = []
    tune: Callable[..., Choice] = Predictor.tune

    def counted(
        self: Predictor, image: object, modality: str | None = None, case_id: str = "", waiting: float = 0
    ) -> Choice:
        calls.append(case_id)
        tune(self, image, modality, case_id)
        self.use(Choice(REFERENCE, "large", 1.0, case_id, 2.0))
        return self.choice

    monkeypatch.setattr(Predictor, "tune", counted)
    first = run_batch(thresholds, [tmp_path / "images"], tmp_path / "out")
    assert calls == ["case0"]
    assert first.content["engine"]["windows"] == "large"
    (tmp_path / "out" / "case3_seg.nii.gz").unlink()
    second = run_batch(thresholds, [tmp_path / "images"], tmp_path / "out")
    assert calls == ["case0"]
    assert second.content["engine"] == first.content["engine"]


def test_fp32_is_the_reference(thresholds: Path, tmp_path: Path) -> None:
    assert fixed_engine("fp32") == REFERENCE
    save(blobs((12, 12, 12)), grid("plain"), tmp_path / "a.nii.gz")
    report = run_batch(thresholds, [tmp_path / "a.nii.gz"], tmp_path / "out", Options(precision="fp32"))
    assert report.content["engine"]["engine"] == REFERENCE
    assert report.content["engine"]["windows"] == "bundle"


def test_large_windows_keep_the_memory_that_was_settled(
    tmp_path: Path, thresholds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(blobs((40, 38, 20)), grid("plain"), tmp_path / "a.nii.gz")
    monkeypatch.setattr(networks, "share_bytes", lambda _: 1 << 30)
    first = run_batch(thresholds, [tmp_path / "a.nii.gz"], tmp_path / "out", Options(windows="large"))
    assert first.content["engine"]["memory_bytes"] == 1 << 28  # two fifths, rounded down to a power of two
    monkeypatch.setattr(networks, "share_bytes", lambda _: 1 << 34)
    (tmp_path / "out" / "a_seg.nii.gz").unlink()
    again = run_batch(thresholds, [tmp_path / "a.nii.gz"], tmp_path / "out", Options(windows="large"))
    assert again.content["engine"] == first.content["engine"]


def test_large_windows_never_take_more_than_there_is_now(thresholds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, volume = Predictor(thresholds), torch.zeros(1, 64, 64, 64)
    predictor.use(Choice(windows="large", memory_bytes=1 << 40))
    assert predictor.networks.windows(volume).roi_size == (64, 64, 64)
    monkeypatch.setattr(networks, "share_bytes", lambda _: 40 * 40 * 40 * 12)  # three scores a voxel
    assert 16 * 16 * 16 < np.prod(predictor.networks.windows(volume).roi_size) < 40 * 40 * 40


def test_large_windows_are_only_laid_where_they_were_measured(thresholds: Path) -> None:
    predictor = Predictor(thresholds)
    measured = Choice(windows="large", agreement=1.0, memory_bytes=1 << 40, measured_shape=(40, 40, 40))
    predictor.use(Choice.from_json(json.loads(json.dumps(measured.to_json()))))
    assert predictor.networks.windows(torch.zeros(1, 44, 40, 36)).roi_size == (44, 40, 36)
    assert predictor.networks.windows(torch.zeros(1, 45, 40, 36)).roi_size == predictor.networks.own_windows.roi_size
