"""Exports answer like the original, and one that does not is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.bundle import Bundle
from medseg.conversion import export
from medseg.errors import BundleError, UsageError
from medseg.ingest import save_nifti
from tests.bundle.sample import read_config, write_config


@pytest.mark.parametrize(
    ("kind", "name"),
    [("torchscript", "net.ts"), ("onnx", "net.onnx"), pytest.param("openvino", "net.xml", marks=pytest.mark.slow)],
)
def test_export_answers_like_the_original(kind: Any, name: str, bundle: Path, tmp_path: Path) -> None:
    if kind != "torchscript":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    if kind == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    made = export(bundle, kind, tmp_path / "out" / name)
    assert made.path.is_file()
    assert made.max_difference < 1e-3
    assert made.label_agreement > 0.999
    assert not made.real_windows


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers when it builds LoadImaged
def test_windows_are_cut_from_images(bundle: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((20, 14, 30), dtype=np.float32)
    save_nifti(image, np.eye(4), tmp_path / "image.nii.gz")
    made = export(bundle, "torchscript", tmp_path / "net.ts", images=[tmp_path / "image.nii.gz"])
    assert made.real_windows
    assert made.windows == 3


def test_a_wrong_export_is_not_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: torch.nn.Module, window: torch.Tensor, path: Path) -> Any:
        path.write_bytes(b"x")
        return lambda image: network(image) * 1.1

    monkeypatch.setitem(export.__globals__["_WRITERS"], "torchscript", wrong)
    with pytest.raises(BundleError, match="differs from the original"):
        export(bundle, "torchscript", tmp_path / "net.ts")
    assert not (tmp_path / "net.ts").exists()


def test_a_computed_window_size_is_refused(bundle: Path, tmp_path: Path) -> None:
    config = read_config(bundle, "inference")
    config["inferer"]["roi_size"] = "$[16] * 3"
    write_config(bundle, "inference", config)
    with pytest.raises(BundleError, match="roi_size"):
        export(Bundle.open(bundle), "torchscript", tmp_path / "net.ts")


def test_an_unknown_format_is_a_usage_error(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of"):
        export(bundle, "caffe", tmp_path / "net")  # type: ignore[arg-type]
