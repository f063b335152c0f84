"""A planned bundle is complete, passes the audit, and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from medseg.bundle import Bundle, audit
from medseg.errors import UsageError
from medseg.files import write_json
from medseg.geometry import Geometry
from medseg.inference import run_batch
from medseg.inference.config import Channels, channels_of
from medseg.ingest import read_volume, save_nifti
from medseg.manifests import Manifest
from medseg.planning import Budget, create_bundle
from medseg.planning.fingerprint import fingerprint_of_data
from medseg.sharing import verify
from medseg.training import SoftBorderLoss, fold_items, train_bundle
from tests.inference.bundles import run_monai

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
    assert {finding.severity for finding in audit(folder)} == {"warn"}, "it names the cases and where they lie"
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
    assert planned.keys() - {"channel_keys"} == shipped.keys()
    assert "<" not in json.dumps(planned)


def test_structures_that_a_slice_parts_get_soft_borders_and_are_hardly_tilted(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data")
    for number, path in enumerate(sorted((tmp_path / "data").glob("label*.nii.gz"))):
        label, geometry, _ = read_volume(path)
        label = label.astype(np.uint8)
        label[:, 9 + number % 3 :] *= 2  # a coronal slice of the reader's choice
        save_nifti(label, geometry.affine, path)
    write_json(datalist, {**json.loads(datalist.read_text()), "labels": {"0": "background", "1": "body", "2": "head"}})
    folder, _ = create_bundle("ball_mri_segmentation", datalist, tmp_path)
    parser = ConfigParser(dict(Bundle.open(folder).config("train")))
    loss = parser.get_parsed_content("loss")
    assert isinstance(loss, SoftBorderLoss)
    assert loss.groups == [[1, 2]]
    deformed = parser["train#augmentation_transforms#0"]
    assert deformed["rotate_range"] == [0.12, 0.35, 0.12]
    assert deformed["shear_range"] == [0.1, 0.1, 0.03, 0.03, 0.1, 0.1]
    assert "| soft borders | body and head |" in (folder / "docs" / "plan.md").read_text()


@pytest.mark.parametrize("name", ["Ball", "ball", "../ball_mri", "ball mri"])
def test_unusual_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the form"):
        create_bundle(name, tmp_path / "datalist.json", tmp_path)


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "ball_mri_segmentation").mkdir()
    with pytest.raises(UsageError, match="exists"):
        create_bundle("ball_mri_segmentation", tmp_path / "datalist.json", tmp_path)


def move_to_another_grid(folder: Path, cases: int = 6, shift_mm: float = 0.0) -> None:
    """Put the second channel onto coarse, slightly turned voxels, as a PET's; the field of view stays covered."""
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.5, 2.5, 3.0])
    affine[:3, 3] = [1.0 + shift_mm, -3.0, -3.0]
    axes = np.stack(np.meshgrid(*[np.arange(n) for n in (18, 18, 16)], indexing="ij"), axis=-1)
    places = axes @ affine[:3, :3].T + affine[:3, 3]
    for case in range(cases):
        label, grid, _ = read_volume(folder / f"label{case}.nii.gz")
        centre = np.argwhere(label).mean(axis=0) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        hot = np.linalg.norm(places - centre, axis=-1) < 7
        save_nifti((hot * 8 + 1).astype(np.float32), affine, folder / f"case{case}_1.nii.gz")


def test_channels_on_different_grids_become_one_image_in_training_and_inference(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", channels=2)
    move_to_another_grid(tmp_path / "data")
    folder, plan = create_bundle("ball_mrpet_segmentation", datalist, tmp_path)
    assert {finding.severity for finding in audit(folder)} == {"warn"}, "it names the cases and where they lie"
    assert plan.keys == ("image", "channel_1")
    bundle = Bundle.open(folder)
    assert bundle.input_channels == 2
    assert channels_of(bundle) == Channels(("image", "channel_1"), resampled=True)
    train = bundle.config("train")
    (item, *_) = fold_items(folder / "configs" / "datalist.json", tmp_path / "data", 0, "training", keys=plan.keys)
    assert set(item) == {"image", "channel_1", "label"}
    prepare = ConfigParser({**train, "x": train["train"]["preprocessing_transforms"]})
    prepared = Compose(prepare.get_parsed_content("x"))(item)
    assert prepared.keys() == {"image", "label"}
    image, label = prepared["image"].numpy(), prepared["label"].numpy()[0] > 0
    assert image.shape == (2, *label.shape)
    for channel in image:  # both channels are bright where the label is: they lie over each other
        assert channel[label].mean() > channel[~label].mean() + 1.0
    assert "ball" in (folder / "docs" / "plan.md").read_text()


def test_intensities_inside_the_structures_are_taken_across_grids(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", cases=3, channels=2)
    move_to_another_grid(tmp_path / "data", 3)
    data = fingerprint_of_data(Manifest.read(datalist))
    assert not data.one_grid
    assert data.coverage == 1.0
    mr, pet = data.intensity
    assert mr.mean == pytest.approx(400, abs=10)
    assert pet.high == 9.0
    assert 7.5 < pet.mean < 9.0  # 9 within the ball and 1 around it: voxels at its border may lie outside


def test_what_does_not_lie_together_is_refused(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", cases=2, channels=2)
    move_to_another_grid(tmp_path / "data", 2, shift_mm=400.0)
    with pytest.raises(UsageError, match="covers 0%"):
        create_bundle("ball_mrpet_segmentation", datalist, tmp_path)
    assert not (tmp_path / "ball_mrpet_segmentation").exists()


def test_the_channel_with_the_labels_comes_first(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", cases=2, channels=2)
    move_to_another_grid(tmp_path / "data", 2)
    content = json.loads(datalist.read_text())
    for item in content["training"]:
        item["image"].reverse()
    write_json(datalist, content)
    with pytest.raises(UsageError, match="list channel 2 first"):
        create_bundle("ball_mrpet_segmentation", datalist, tmp_path)


@pytest.mark.parametrize("apart", [False, True], ids=["one grid", "two grids"])
def test_monai_alone_pairs_the_channels_of_the_datalist(tmp_path: Path, apart: bool) -> None:
    """Two cases whose first channels have one file name in two folders: nothing is mixed up or overwritten."""
    datalist = write_dataset(tmp_path / "data", cases=2, channels=2)
    if apart:
        move_to_another_grid(tmp_path / "data", 2)
    content = json.loads(datalist.read_text())
    for number, item in enumerate(content["training"]):
        (tmp_path / "data" / f"p{number}").mkdir()
        for key, names in (("image", ["mr.nii.gz", "pet.nii.gz"]), ("label", ["label.nii.gz"])):
            for old, new in zip([item[key]] if key == "label" else item[key], names, strict=True):
                (tmp_path / "data" / old).rename(tmp_path / "data" / f"p{number}" / new)
            item[key] = [f"p{number}/{name}" for name in names] if key == "image" else f"p{number}/label.nii.gz"
    write_json(datalist, content)
    folder, _ = create_bundle("ball_mrpet_segmentation", datalist, tmp_path)
    publish_random_weights(folder)
    run_monai(folder, tmp_path / "data", tmp_path / "monai")
    report = run_batch(folder, [datalist], tmp_path / "medseg")
    assert [case["status"] for case in report.content["cases"]] == ["done", "done"]
    for case in report.content["cases"]:
        patient = Path(case["source"]).parent.name
        expected, grid, _ = read_volume(tmp_path / "monai" / patient / "mr_seg.nii.gz")
        found, own, _ = read_volume(tmp_path / "medseg" / f"{case['case_id']}_seg.nii.gz")
        assert grid.matches(own)
        assert np.mean(found == expected) > 0.9999
        assert 0.001 < expected.mean() < 0.999


def publish_random_weights(folder: Path) -> None:
    torch.manual_seed(4)
    parser = ConfigParser({"net": Bundle.open(folder).config("inference")["network_def"]})
    torch.save(parser.get_parsed_content("net").state_dict(), folder / "models" / "model.pt")


def test_labels_with_gaps_are_refused(tmp_path: Path) -> None:
    datalist = write_dataset(tmp_path / "data", cases=2)
    content = json.loads(datalist.read_text())
    content["labels"] = {"0": "background", "1": "ball", "5": "other"}
    write_json(datalist, content)
    with pytest.raises(UsageError, match="--map 5=2"):
        create_bundle("ball_mri_segmentation", datalist, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "apart"), [(1, False), (2, False), (2, True)])
@pytest.mark.filterwarnings("ignore:Setting affine:UserWarning:monai")  # MONAI says so whenever a tensor is rebuilt
def test_a_planned_bundle_trains_and_is_published(tmp_path: Path, channels: int, apart: bool) -> None:
    datalist = write_dataset(tmp_path / "data", channels=channels)
    if apart:
        move_to_another_grid(tmp_path / "data")
    folder, _ = create_bundle("ball_mri_segmentation", datalist, tmp_path, budget=Budget(minutes=4))
    overrides = {"epochs": 2, "iterations": 12, "val_interval": 2, "warm_up": 12, "ramp": 6}
    train_bundle(folder, fold=0, output=tmp_path / "out", device="cpu", overrides=overrides, publish=True)
    losses = [float(row.split(",")[5]) for row in (tmp_path / "out" / "metrics.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    assert list((tmp_path / "out" / "samples").glob("*.png"))
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    assert not [finding for finding in verify(folder) if finding.severity == "block"]
    report = run_batch(folder, [datalist], tmp_path / "found")
    assert {case["status"] for case in report.content["cases"]} == {"done"}
