"""A pipeline in ONNX Runtime, without torch, MONAI and medseg, labels as ``medseg infer`` does."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli import bundle as bundle_command
from medseg.cli import infer as infer_command
from medseg.cli.main import app
from medseg.conversion import export_pipeline
from medseg.errors import BundleError
from medseg.ingest import save_nifti
from medseg.phantom import make_patient, write_nifti
from tests.bundle.sample import read_config, write_config

assert bundle_command
assert infer_command
for _module in ("onnx", "openvino", "onnxruntime"):
    pytest.importorskip(_module, reason="the extras export and dev are not installed")

_ROOT = Path(__file__).parents[2]
_RUNNER = _ROOT / "docs" / "run_pipeline.py"
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


def _prepared(bundle: Path, *transforms: dict[str, Any], **inferer: Any) -> Path:
    """The sample bundle with other preprocessing, inverted from probabilities as the shipped ones do."""
    config = read_config(bundle, "inference")
    loading = config["preprocessing"]["transforms"][:2]
    config["preprocessing"]["transforms"] = [*loading, *({**step, "keys": "image"} for step in transforms)]
    inversion = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False, "to_tensor": True}
    config["postprocessing"]["transforms"][:0] = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", **inversion},
    ]
    config["inferer"] |= inferer
    write_config(bundle, "inference", config)
    _undecided(bundle)
    return bundle


def _undecided(bundle: Path) -> None:
    """Shift the random network's answer so that about half of the voxels are of each class."""
    path = bundle / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    noise = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = Bundle.open(bundle, "network-only").load_network()(noise)
    state["final_conv.bias"][1] -= (scores[:, 1] - scores[:, 0]).median()
    torch.save(state, path)


def _image(path: Path, shape: tuple[int, int, int], affine: Any, low: float = -300.0, high: float = 300.0) -> Path:
    fine = np.random.default_rng(0).uniform(low, high, tuple(n // 3 + 2 for n in shape))
    save_nifti(np.kron(fine, np.ones((3, 3, 3)))[tuple(slice(n) for n in shape)].astype(np.float32), affine, path)
    return path


def _agreement(bundle: Path, pipeline: Path, image: Path, folder: Path) -> float:
    """How many voxels are labelled alike, with no module of ours or torch's in the runner's process."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__');"
        "print([name for name in ('torch', 'monai', 'medseg') if name in sys.modules])"
    )
    labels = folder / "labels.nii.gz"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, _RUNNER, pipeline, image, labels],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    found = CliRunner().invoke(app, ["infer", str(bundle), str(image), "-o", str(folder / "out"), "--no-trust"])
    assert found.exit_code == 0, found.output
    (own,) = (folder / "out").glob("*_seg.nii.gz")
    one, other = (nib.load(path) for path in (own, labels))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    expected = np.asarray(one.dataobj)
    assert 0.01 < (expected > 0).mean() < 0.99
    return float((expected == np.asarray(other.dataobj)).mean())


_ORIENT = {"_target_": "Orientationd", "axcodes": "RAS", "labels": None}
_RANGE = {"a_min": -150, "a_max": 250, "b_min": -1, "b_max": 1, "clip": True}
_OBLIQUE = np.array([[0.0, 1.9, 0.3, 12], [-1.4, 0.0, 0.0, 5], [0, -0.3, 1.9, -40], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("transforms", "inferer", "affine"),
    [
        (
            (_ORIENT, {"_target_": "Spacingd", "pixdim": [1.3, 2.1, 1.1]}, {"_target_": "NormalizeIntensityd"}),
            {"mode": "gaussian", "overlap": 0.5},
            _OBLIQUE,
        ),
        (
            (
                {"_target_": "Spacingd", "pixdim": [2.0, 2.0, 2.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "a_min": -150,
                    "a_max": 250,
                    "b_min": -1,
                    "b_max": 1,
                    "clip": True,
                },
            ),
            {"overlap": 0.25, "padding_mode": "constant"},
            np.diag([-1.7, 2.3, 2.0, 1.0]),
        ),
        (
            ({"_target_": "NormalizeIntensityd", "channel_wise": True}, {"_target_": "EnsureTyped"}),
            {"roi_size": [16, 32, 16]},
            np.diag([1.0, 1.0, 1.0, 1.0]),
        ),
    ],
)
def test_the_runner_labels_as_infer_does(
    transforms: Any, inferer: Any, affine: Any, bundle: Path, tmp_path: Path
) -> None:
    sample = _prepared(bundle, *transforms, **inferer)
    made = export_pipeline(sample, tmp_path / "pipeline.zip")
    assert made.path == tmp_path / "pipeline.zip"
    image = _image(tmp_path / "image.nii.gz", (37, 22, 29), affine)
    assert _agreement(sample, made.path, image, tmp_path) >= 0.9999


@pytest.mark.slow
def test_the_shipped_hippocampus_bundle_is_labelled_alike(real_data: Path, tmp_path: Path) -> None:
    bundle = _ROOT / "bundles" / "hippocampus_mri_segmentation"
    image = sorted((real_data / "msd_hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    made = export_pipeline(bundle, tmp_path / "pipeline.zip")
    assert _agreement(bundle, made.path, image, tmp_path) >= 0.9999


@pytest.mark.slow
def test_the_shipped_phantom_bundle_is_labelled_alike(tmp_path: Path) -> None:
    bundle = _ROOT / "bundles" / "phantom_ct_segmentation"
    write_nifti(make_patient(3), image=tmp_path / "image.nii.gz")
    made = export_pipeline(bundle, tmp_path / "pipeline.zip")
    assert _agreement(bundle, made.path, tmp_path / "image.nii.gz", tmp_path) >= 0.9999


def test_the_zip_says_what_it_is(bundle: Path, tmp_path: Path) -> None:
    sample = _prepared(bundle, _ORIENT, {"_target_": "NormalizeIntensityd"})
    arguments = ["bundle", "export", str(sample), "--format", "onnx", "--pipeline", "-o", str(tmp_path / "p.zip")]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    with zipfile.ZipFile(tmp_path / "p.zip") as packed:
        assert packed.namelist() == ["LICENSE", "labels.onnx", "network.onnx", "plan.json", "prepare.onnx"]
        plan = json.loads(packed.read("plan.json"))
    assert plan["bundle"] == {"name": sample.name, "version": "0.1.0", "sha256": Bundle.open(sample).sha256}
    assert plan["labels"] == {"1": "sphere"}
    assert plan["intensities"] == [
        {"step": "NormalizeIntensity", "subtract": None, "divide": None, "channel_wise": False}
    ]
    assert plan["network_check"]["label_agreement"] > 0.999
    found = CliRunner().invoke(app, [*arguments[:4], "torchscript", *arguments[5:]])
    assert found.exit_code == 2
    assert "--pipeline is for" in found.stderr


@pytest.mark.parametrize(
    ("transforms", "what"),
    [
        (({"_target_": "CropForegroundd", "source_key": "image"},), "CropForegroundd at this place"),
        (({"_target_": "NormalizeIntensityd", "nonzero": True},), "NormalizeIntensityd with these arguments"),
        (({"_target_": "NormalizeIntensityd"}, _ORIENT), "Orientationd at this place"),
        (({"_target_": "Spacingd", "pixdim": [1, 1, 1], "mode": "nearest"},), "Spacingd with these arguments"),
        (({"_target_": "Spacingd", "pixdim": [1, 1, 1], "diagonal": True},), "Spacingd with these arguments"),
    ],
)
def test_what_the_format_has_no_word_for_is_refused(transforms: Any, what: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=what):
        export_pipeline(_prepared(bundle, *transforms), tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()


def test_labels_that_are_made_before_the_way_back_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="its way from scores to labels"):
        export_pipeline(bundle, tmp_path / "p.zip")


def test_regions_are_painted_in_the_graph(tmp_path: Path) -> None:
    import onnxruntime

    from medseg.conversion.export_pipeline import _activation, _decoding, _write_stage
    from medseg.inference.invert import _painted
    from medseg.labels.decoding import LabelDecoding

    decoding = LabelDecoding("sigmoid", 0.5, (0, 2, 1, 3, 0, 2, 1, 3))
    _write_stage(tmp_path / "a.onnx", [_activation(decoding)], [_decoding(decoding)], 3, ("scores", "labels"))
    scores = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    names = [entry.name for entry in session.get_inputs()]
    grid = [np.arange(n, dtype=np.float64) for n in (4, 5, 6)]
    (found,) = session.run(None, dict(zip(names, [scores.numpy(), *grid], strict=True)))
    np.testing.assert_array_equal(found, _painted(list(scores.sigmoid()), decoding))


@pytest.mark.slow
def test_monais_own_export_works(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    sample = _prepared(bundle, _ORIENT)
    arguments = ["onnx_export", "--net_id", "network_def", "--filepath", str(tmp_path / "net.onnx")]
    arguments += ["--ckpt_file", str(sample / "models" / "model.pt"), "--input_shape", "[1,1,16,16,16]"]
    configs = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    command = [sys.executable, "-m", "monai.bundle", *arguments, *configs]
    done = subprocess.run(command, cwd=sample, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "net.onnx").is_file()
