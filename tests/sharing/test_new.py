"""A planned bundle is complete, passes the audit, and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.bundle import Bundle, audit, verify
from medseg.errors import UsageError
from medseg.files import write_json
from medseg.geometry import Geometry
from medseg.ingest import save_nifti
from medseg.sharing import create_bundle

REPOSITORY = Path(__file__).parents[2]


def write_dataset(folder: Path, cases: int = 6, channels: int = 1) -> Path:
    """Bright balls in noise; the images lie in LAS orientation with 2 mm slices."""
    generator = np.random.default_rng(0)
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    axes = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 36, 20)], indexing="ij"), axis=-1)
    items = []
    for case in range(cases):
        ball = np.linalg.norm((axes - generator.integers(8, 12, 3)) * [1, 1, 2], axis=-1) < 7
        names = [f"case{case}_{channel}.nii.gz" for channel in range(channels)]
        for name in names:
            save_nifti((ball * 300 + generator.normal(100, 30, ball.shape)).astype(np.float32), affine, folder / name)
        save_nifti(ball.astype(np.uint8), affine, folder / f"label{case}.nii.gz")
        image: Any = names[0] if channels == 1 else names
        items.append({"image": image, "label": f"label{case}.nii.gz", "patient_id": f"p{case}"})
    modality = {str(channel): "MRI" for channel in range(channels)}
    labels = {"0": "background", "1": "ball"}
    write_json(folder / "datalist.json", {"modality": modality, "labels": labels, "licence": "CC0", "training": items})
    return folder / "datalist.json"


def test_the_bundle_is_complete_but_for_its_weights(tmp_path: Path) -> None:
    folder, plan = create_bundle("ball_mri_segmentation", write_dataset(tmp_path / "data"), tmp_path)
    assert audit(folder) == []
    assert [finding.file for finding in verify(folder) if finding.severity == "block"] == ["models"]
    bundle = Bundle.open(folder)
    assert bundle.labels == {1: "ball"}
    assert bundle.config("train")["spacing_mm"] == [1.0, 1.0, 2.0] == list(plan.spacing_mm)
    bundle.check_range(Geometry((40, 36, 20), np.diag([-1.0, 1.0, 2.0, 1.0])))
    assert {item["fold"] for item in bundle.config("datalist")["training"]} == {0, 1, 2, 3, 4}
    assert "| network |" in (folder / "docs" / "plan.md").read_text()
    assert (folder / "docs" / "data_license.txt").read_text() == "CC0\n"


def test_two_channels(tmp_path: Path) -> None:
    folder, _ = create_bundle("ball_mri_segmentation", write_dataset(tmp_path / "data", channels=2), tmp_path)
    bundle = Bundle.open(folder)
    assert bundle.input_channels == 2
    assert bundle.config("train")["discriminator_def"]["image_channels"] == 2
    assert bundle.config("train")["network_def"]["in_channels"] == 2


def test_inference_needs_only_monai_and_agrees_with_training(tmp_path: Path) -> None:
    folder, _ = create_bundle("ball_mri_segmentation", write_dataset(tmp_path / "data"), tmp_path)
    inference, train = (Bundle.open(folder).config(name) for name in ("inference", "train"))
    assert "medseg" not in json.dumps(inference)
    assert inference["network_def"] == train["network_def"]
    assert inference["spacing_mm"] == train["spacing_mm"]


@pytest.mark.parametrize("name", ["train", "inference", "evaluate", "multi_gpu_train"])
def test_planned_bundles_have_the_form_of_the_shipped_one(name: str, tmp_path: Path) -> None:
    shipped = Bundle.open(REPOSITORY / "bundles" / "hippocampus_mri_segmentation").config(name)
    folder, _ = create_bundle("ball_mri_segmentation", write_dataset(tmp_path / "data", cases=5), tmp_path)
    planned = Bundle.open(folder).config(name)
    assert planned.keys() == shipped.keys()


@pytest.mark.parametrize("name", ["Ball", "ball", "../ball_mri", "ball mri"])
def test_unusual_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the form"):
        create_bundle(name, tmp_path / "datalist.json", tmp_path)


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "ball_mri_segmentation").mkdir()
    with pytest.raises(UsageError, match="exists"):
        create_bundle("ball_mri_segmentation", tmp_path / "datalist.json", tmp_path)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", cases=2, channels=2)
    save_nifti(np.zeros((10, 10, 10), np.float32), np.eye(4), tmp_path / "data" / "case0_1.nii.gz")
    with pytest.raises(UsageError, match="one grid"):
        create_bundle("ball_mri_segmentation", datalist, tmp_path)
    assert not (tmp_path / "ball_mri_segmentation").exists()


def test_labels_with_gaps_are_refused(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", cases=2)
    content = json.loads(datalist.read_text())
    content["labels"] = {"0": "background", "1": "ball", "5": "other"}
    write_json(datalist, content)
    with pytest.raises(UsageError, match="without gaps"):
        create_bundle("ball_mri_segmentation", datalist, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting affine:UserWarning:monai")  # MONAI says so whenever a tensor is rebuilt
def test_a_planned_bundle_trains(tmp_path: Path) -> None:
    from medseg.training import train_bundle

    folder, _ = create_bundle("ball_mri_segmentation", write_dataset(tmp_path / "data"), tmp_path)
    overrides = {"epochs": 1, "iterations": 2, "val_interval": 1, "patch_size": [32, 32, 16]}
    train_bundle(folder, fold=0, output=tmp_path / "out", device="cpu", overrides=overrides)
    assert (tmp_path / "out" / "metrics.csv").is_file()
