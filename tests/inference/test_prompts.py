"""VISTA3D by class prompts: the labels that the zoo's own inferer and MONAI's transforms give."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInfererAdapt
from monai.networks.nets import UNet, vista3d132
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, ScaleIntensityRanged, Spacingd

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.inference import Options, Predictor, run_batch
from medseg.inference.config import read_inference_config
from medseg.inference.prompts import ClassScores
from medseg.inference.sliding_window import Chunk
from medseg.workflows.trust_fit import FitRequest, recalibrate
from tests.inference.volumes import blobs, grid, save
from tests.outputs.series import CODES, write_series

Config = dict[str, Any]
FEATURES, PATCH, SHAPE = 8, 32, (38, 30, 22)
NAMES = ["background", "liver", "kidney", "spleen", "pancreas", "right kidney", "aorta", "gall bladder", "stomach"]
NAMES += ["duodenum", "left kidney", "bladder", "airway"]
ALL = [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
KEY = "@image_key"


def config() -> Config:
    """The shape of the zoo's ``inference.json``."""
    return {
        "imports": ["$import glob", "$import scripts", "$import copy", "$import json", "$import pathlib"],
        "bundle_root": "./",
        "image_key": "image",
        "input_dict": "${'image': 'spleen_10.nii.gz', 'label_prompt': [3]}",
        "everything_labels": "$list(set([i+1 for i in range(12)]) - set([2]))",
        "metadata_path": "$@bundle_root + '/configs/metadata.json'",
        "metadata": "$json.loads(pathlib.Path(@metadata_path).read_text())",
        "labels_dict": "$@metadata['network_data_format']['outputs']['pred']['channel_def']",
        "subclass": {"2": [10, 5]},
        "input_channels": 1,
        "device": "$torch.device('cpu')",
        "network_def": f"$monai.networks.nets.vista3d132(encoder_embed_dim={FEATURES}, in_channels=@input_channels)",
        "network": "$@network_def.to(@device)",
        "preprocessing_transforms": [
            {"_target_": "LoadImaged", "keys": KEY, "image_only": True},
            {"_target_": "EnsureChannelFirstd", "keys": KEY},
            {"_target_": "Spacingd", "keys": KEY, "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"},
            {"_target_": "CropForegroundd", "keys": KEY, "allow_smaller": True, "margin": 10, "source_key": KEY},
            {
                "_target_": "monai.apps.vista3d.transforms.VistaPreTransformd",
                "keys": KEY,
                "subclass": "@subclass",
                "labels_dict": "@labels_dict",
            },
            {"_target_": "ScaleIntensityRanged", "keys": KEY, "a_min": 0, "a_max": 50, "b_min": 0, "b_max": 1},
            {"_target_": "Orientationd", "keys": KEY, "axcodes": "RAS"},
        ],
        "preprocessing": {"_target_": "Compose", "transforms": "$@preprocessing_transforms "},
        "dataset": {"_target_": "Dataset", "data": "$[@input_dict]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "ThreadDataLoader", "dataset": "@dataset", "num_workers": 0},
        "inferer": {
            "_target_": "scripts.inferer.Vista3dInferer",
            "roi_size": [PATCH] * 3,
            "overlap": 0.3,
            "sw_batch_size": 1,
            "use_point_window": True,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "monai.apps.vista3d.transforms.VistaPostTransformd", "keys": "pred"},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "$copy.deepcopy(@preprocessing)",
                    "orig_keys": KEY,
                    "nearest_interp": True,
                    "to_tensor": True,
                },
                {"_target_": "Lambdad", "func": "$lambda x: torch.nan_to_num(x, nan=255)", "keys": "pred"},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "eval"},
            ],
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "evaluator": {
            "_target_": "scripts.evaluator.Vista3dEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "hyper_kwargs": {"user_prompt": True, "everything_labels": "@everything_labels"},
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle like the zoo's, whose scripts must not run; do not change it."""
    folder = tmp_path_factory.mktemp("zoo") / "vista3d"
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    image = {"type": "image", "num_channels": 1, "spatial_shape": [PATCH] * 3, "dtype": "float32"}
    named = {str(value): name for value, name in enumerate(NAMES)}
    described = {"inputs": {"image": image}, "outputs": {"pred": {**image, "channel_def": named}}}
    (folder / "configs/metadata.json").write_text(json.dumps({"version": "0.1.0", "network_data_format": described}))
    (folder / "configs/inference.json").write_text(json.dumps(config()))
    for name in ("__init__", "evaluator", "inferer"):
        (folder / f"scripts/{name}.py").write_text("raise SystemExit('the code of the bundle ran')\n")
    torch.save(network().state_dict(), folder / "models/model.pt")
    return folder


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    made: torch.nn.Module = vista3d132(encoder_embed_dim=FEATURES)
    return made.eval()


def image() -> MetaTensor:
    return MetaTensor(blobs(SHAPE)[None], affine=grid("permuted"))


def by_the_zoo(classes: list[int]) -> np.ndarray:
    """What the bundle's evaluator does without clicks: its inferer's windows, and MONAI's transforms of VISTA3D."""
    from monai.apps.vista3d.transforms import VistaPostTransformd

    steps = Compose(
        [
            Spacingd("image", (1.5, 1.5, 1.5), mode="bilinear"),
            CropForegroundd("image", "image", margin=10, allow_smaller=True),
            ScaleIntensityRanged("image", 0, 50, 0, 1),
            Orientationd("image", "RAS"),
        ]
    )
    prompts = torch.tensor(classes)[:, None]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        prepared = steps({"image": image()})
        windows = SlidingWindowInfererAdapt(roi_size=[PATCH] * 3, sw_batch_size=1, with_coord=True)
        scores = windows(
            prepared["image"][None],
            network(),
            transpose=True,
            class_vector=prompts,
            prompt_class=copy.deepcopy(prompts),
        )
        item = VistaPostTransformd("pred")({**prepared, "pred": MetaTensor(scores[0].clone()), "label_prompt": prompts})
        back = Invertd("pred", steps, "image", nearest_interp=True)(item)["pred"]
    return np.asarray(back[0]).astype(np.int64)


@pytest.mark.parametrize("classes", [ALL, [3, 1, 11]], ids=["everything", "three structures"])
def test_the_labels_are_those_of_the_zoos_own_inferer(written: Path, classes: list[int]) -> None:
    asked = () if classes == ALL else tuple(NAMES[value] for value in classes)
    found = Predictor(written, "cpu", "fp32", structures=asked).predict(image()).label_map
    expected = by_the_zoo(classes)
    assert len(np.unique(expected)) > 2, "the case would not tell a difference"
    np.testing.assert_array_equal(found, expected)


def test_a_structure_stands_for_its_parts_and_unknown_ones_are_told(written: Path) -> None:
    bundle = Bundle.open(written)
    assert read_inference_config(bundle, ("kidney", "Liver")).prompts == (10, 5, 1)
    assert read_inference_config(bundle).prompts == tuple(ALL)
    with pytest.raises(UsageError, match="--structures heart: vista3d has no such structure; it has liver, kidney"):
        read_inference_config(bundle, ("heart",))


def test_what_was_not_asked_for_has_no_volume_of_nothing(written: Path, tmp_path: Path) -> None:
    save(blobs(SHAPE), grid("permuted"), tmp_path / "in.nii.gz")
    options = Options(device="cpu", precision="fp32", structures=("liver", "kidney"))
    report = run_batch(written, [tmp_path / "in.nii.gz"], tmp_path / "out", options)
    assert report.complete, report.cases[0].message
    names = [one.name for one in report.cases[0].structures]
    assert names == ["liver", "right kidney", "left kidney"], "nor has the kidney, which comes as its parts"


def test_a_report_says_nothing_of_what_was_not_asked_for(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "vista3d"))
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    metadata["segment_codes"] = {str(value): CODES[1] for value in range(1, len(NAMES))}
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    write_series(tmp_path / "in", np.diag([1.5, 1.5, 1.5, 1.0]), SHAPE)
    monkeypatch.setattr(ClassScores, "labels", _nothing)
    options = Options(write=("sr",), device="cpu", precision="fp32", structures=("liver", "spleen"))
    report = run_batch(folder, [tmp_path / "in"], tmp_path / "out", options)
    assert report.complete, report.cases[0].message
    (path,) = (tmp_path / "out").glob("*_sr.dcm")
    stated = str(pydicom.dcmread(path))
    assert all(name in stated for name in ("liver", "spleen"))
    assert not any(name in stated for name in ("aorta", "kidney"))


def _nothing(_: ClassScores, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    yield from (Chunk(chunk.start, torch.zeros_like(chunk.scores[:1])) for chunk in chunks)


def test_trust_is_not_fitted_to_features(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="asked by class"):
        recalibrate(FitRequest(written, tmp_path, tmp_path, device="cpu"))


def test_nothing_of_the_size_of_classes_times_volume_is_made() -> None:
    scores = ClassScores(network(), range(1, 200), "vista3d")
    assert scores.stitches_features
    with torch.inference_mode():
        assert scores(torch.rand(1, 1, PATCH, PATCH, PATCH)).shape[1] == FEATURES


def test_labels_do_not_depend_on_how_many_voxels_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ClassScores(network(), range(1, 50), "vista3d")
    chunk = Chunk(4, torch.randn(FEATURES, 3, 5, 7, generator=torch.Generator().manual_seed(0)))
    (whole,) = scores.labels([chunk])
    monkeypatch.setattr("medseg.inference.prompts._VOXELS", 8)
    (parts,) = scores.labels([chunk])
    assert whole.start == parts.start == 4
    assert torch.equal(whole.scores, parts.scores)


def test_the_note_and_the_audit_say_that_scripts_are_not_run(written: Path) -> None:
    assert any("(scripts/) do not run" in note for note in read_inference_config(Bundle.open(written)).notes)
    assert not blocks(audit(written, "infer"))
    told = [finding for finding in audit(written) if "code that comes with the bundle" in finding.what]
    assert told
    assert all(finding.commands == ("monai",) for finding in told)


def changed(written: Path, tmp_path: Path, **parts: Any) -> Path:
    folder = Path(shutil.copytree(written, tmp_path / "vista3d"))
    (folder / "configs/inference.json").write_text(json.dumps({**config(), **parts}))
    return folder


def test_code_elsewhere_in_it_is_refused_as_ever(written: Path, tmp_path: Path) -> None:
    folder = changed(written, tmp_path, everything_labels="$scripts.choose()")
    with pytest.raises(UntrustedBundle, match="the bundle brings code of its own"):
        read_inference_config(Bundle.open(folder))


@pytest.mark.parametrize("labels", [[1, 77], "$'liver'", [True]])
def test_classes_without_a_name_are_refused(written: Path, tmp_path: Path, labels: Any) -> None:
    with pytest.raises(BundleError, match="everything_labels of vista3d are"):
        read_inference_config(Bundle.open(changed(written, tmp_path, everything_labels=labels)))


def test_another_network_is_refused(written: Path, tmp_path: Path) -> None:
    unet = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    folder = changed(written, tmp_path, network_def={**unet, "channels": [4, 8], "strides": [2]})
    torch.save(UNet(3, 1, 2, (4, 8), (2,)).state_dict(), folder / "models/model.pt")
    with pytest.raises(BundleError, match="the network of vista3d is a UNet, expected VISTA3D"):
        Predictor(folder, "cpu", "fp32")
