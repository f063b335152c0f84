"""Labels and paths of a training: checked where they are loaded, and read from where the datalist says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose, Transform
from monai.transforms.utility.dictionary import Identityd

from medseg.errors import Refusal, UsageError
from medseg.training import TrainingDataset, data_root, fold_items, image_items, train_bundle
from medseg.training.checkpoints import Conditions
from medseg.training.data import Draw, with_folder
from medseg.transforms import LoadLabeld, LoadVolumed
from tests.ingest.trees import write_series
from tests.training.bundles import FLAGSHIP, SMALL, copy_bundle, write_data

BUNDLES = FLAGSHIP.parent
SHIPPED = [path.name for path in sorted(BUNDLES.iterdir()) if (path / "configs" / "train.json").is_file()]


def change_label(folder: Path, change: Any, number: int = 0, affine: np.ndarray | None = None) -> None:
    path = folder / f"label{number}.nii.gz"
    array = np.asanyarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(change(array), np.eye(4) if affine is None else affine), path)


def seven(array: np.ndarray) -> np.ndarray:
    return np.where(array == 1, 7, array).astype(np.int16)


def halves(array: np.ndarray) -> np.ndarray:
    return (array * 0.5).astype(np.float32)


def preprocessing(bundle: Path) -> Compose:
    """The bundle's own way from paths to tensors."""
    parser = ConfigParser(json.loads((bundle / "configs" / "train.json").read_text()))
    return Compose(parser.get_parsed_content("train#preprocessing_transforms"))


@pytest.mark.parametrize("number", [0, 1], ids=["validation", "training"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (seven, "7 in .* voxels, declared are 0 .background., 1 .anterior hippocampus. and 2 .posterior hippocampus."),
        (halves, "the labels are not whole numbers"),
        (lambda array: array.astype(np.int16) - 1, "-1 in .* voxels"),
        (lambda array: np.stack([array, array], axis=-1), "one channel per structure"),
    ],
)
def test_wrong_labels_end_the_run_before_its_first_epoch(change: Any, words: str, number: int, tmp_path: Path) -> None:
    datalist = write_data(tmp_path)
    change_label(tmp_path, change, number)
    with pytest.raises(Refusal, match=words) as refusal:
        train_bundle(copy_bundle(tmp_path), datalist=datalist, output=tmp_path / "run", device="cpu", overrides=SMALL)
    assert f"label{number}.nii.gz" in refusal.value.message
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_a_label_on_another_grid_is_refused(tmp_path: Path) -> None:
    datalist = write_data(tmp_path)
    change_label(tmp_path, lambda array: array, affine=np.diag([-1.0, 1, 1, 1]))
    [item, *_] = fold_items(datalist, None, 0, "validation")
    steps = Compose([LoadVolumed("image", ensure_channel_first=True), LoadLabeld("label", None)])
    with pytest.raises(RuntimeError) as error:
        steps(item)
    assert isinstance(error.value.__cause__, Refusal)
    assert "axes LAS, the image's are RAS" in error.value.__cause__.message


def test_rounding_noise_trains_on_the_right_structures(tmp_path: Path) -> None:
    datalist = write_data(tmp_path)
    [item, *_] = fold_items(datalist, None, 0, "validation")
    steps = preprocessing(FLAGSHIP)
    right = steps(item)["label"]
    change_label(tmp_path, lambda array: (array * 0.99999).astype(np.float32))
    assert set(np.unique(right)) == {0, 1, 2}
    np.testing.assert_array_equal(steps(item)["label"], right)


def test_a_mapping_of_the_datalist_counts_in_training(tmp_path: Path) -> None:
    datalist = write_data(tmp_path)
    steps = preprocessing(FLAGSHIP)
    right = steps(fold_items(datalist, None, 0, "validation")[0])["label"]
    change_label(tmp_path, lambda array: np.select([array == 1, array == 2], [7, 200], 0).astype(np.int16))
    datalist.write_text(json.dumps({**json.loads(datalist.read_text()), "label_mapping": {"7": 1, "200": 2}}))
    items = fold_items(datalist, None, 0, "validation")
    case = steps(items[0])
    np.testing.assert_array_equal(case["label"], right)
    assert set(case) == {"image", "label"}
    mapped = Conditions.of(None, {"validate": items}).cases["validate"][0]
    assert mapped["label_mapping"] == '{"7": 1, "200": 2}'
    with pytest.raises(UsageError, match="has a label_mapping, which the bundle does not apply"):
        TrainingDataset(items, Compose([Identityd("image")]))


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "whole": [1, 2], "core": 2}, {"part": 1, "other": 2, "ignore": 3}],
)
def test_a_bundle_that_does_not_know_regions_or_ignore_refuses_them(labels: dict[str, Any], tmp_path: Path) -> None:
    datalist = write_data(tmp_path)
    datalist.write_text(json.dumps({**json.loads(datalist.read_text()), "labels": labels}))
    items = fold_items(datalist, None, 0, "training")
    with pytest.raises(UsageError, match="a region, an ignore value or a partly annotated case"):
        TrainingDataset(items, Compose([LoadLabeld("label", ["a", "b"])]))


def two_raters(root: Path) -> Path:
    """The datalist, each case with a second rater who labels nothing as 2."""
    datalist = write_data(root)
    content = json.loads(datalist.read_text())
    for item in content["training"]:
        path = datalist.parent / item["label"]
        image = nib.load(path)
        second = path.with_name(f"second_{path.name}")
        nib.save(nib.Nifti1Image(np.where(np.asarray(image.dataobj) == 2, 0, image.dataobj), image.affine), second)
        item["label"] = [{"rater": "A", "label": item["label"]}, {"rater": "B", "label": f"{item['label']}"}]
        item["label"][1]["label"] = str(Path(item["label"][0]["label"]).with_name(second.name))
    datalist.write_text(json.dumps(content))
    return datalist


def test_raters_are_drawn_by_the_seed_and_the_number_of_the_draw(tmp_path: Path) -> None:
    datalist = two_raters(tmp_path)
    items = fold_items(datalist, None, 0, "training")
    data = TrainingDataset(items, preprocessing(FLAGSHIP), seed=3, num_workers=0)
    assert len(data) == len(items)
    drawn = [2 in data[Draw(number, 0)]["label"] for number in range(12)]
    assert {True, False} == set(drawn)
    again = TrainingDataset(items, preprocessing(FLAGSHIP), seed=3, num_workers=0)
    assert drawn == [2 in again[Draw(number, 0)]["label"] for number in range(12)]
    other = TrainingDataset(items, preprocessing(FLAGSHIP), seed=4, num_workers=0)
    assert drawn != [2 in other[Draw(number, 0)]["label"] for number in range(12)]
    [validation, *_] = fold_items(datalist, None, 0, "validation")
    assert 2 not in preprocessing(FLAGSHIP)(validation)["label"]  # the majority: a tie leaves background


@pytest.mark.parametrize(("way", "both"), [("A", True), ("B", False), ("majority", False), ("staple", False)])
def test_the_datalist_says_whose_label_counts(tmp_path: Path, way: str, both: bool) -> None:
    datalist = two_raters(tmp_path)
    datalist.write_text(json.dumps({**json.loads(datalist.read_text()), "raters": way}))
    data = TrainingDataset(fold_items(datalist, None, 0, "training"), preprocessing(FLAGSHIP), num_workers=0)
    assert all((2 in data[Draw(number, 0)]["label"]) == both for number in range(4))


@pytest.mark.parametrize("way", ["majority", "staple", "draw"])
def test_a_rater_who_did_not_judge_a_voxel_has_no_vote_there(tmp_path: Path, way: str) -> None:
    """9 is `ignore`: two of three leave the third voxel out, and the one who judged it says background."""
    said = {"A": [9, 9, 9, 1], "B": [1, 9, 0, 1], "C": [1, 9, 9, 9]}
    for name, values in said.items():
        labels = np.array(values, np.uint8).reshape(1, 2, 2)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    raters = [{"rater": name, "label": f"{name}.nii.gz"} for name in said]
    item = {"image": "A.nii.gz", "label": raters, "fold": 0}
    content = {"labels": {"background": 0, "organ": 1, "ignore": 9}, "raters": way, "training": [item]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    case = dict[Hashable, Any](fold_items(tmp_path / "datalist.json", None, 0, "validation")[0].items())
    assert LoadLabeld("label", None)(case)["label"].flatten().tolist() == [1, 9, 0, 1]


def test_an_unknown_rater_is_refused_and_so_is_a_bundle_that_cannot_choose(tmp_path: Path) -> None:
    datalist = two_raters(tmp_path)
    content = json.loads(datalist.read_text())
    datalist.write_text(json.dumps({**content, "raters": "C"}))
    with pytest.raises(UsageError, match="`raters` is 'C', expected one of draw, majority, staple, A, B"):
        fold_items(datalist, None, 0, "training")
    datalist.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="raters, which the bundle does not apply"):
        TrainingDataset(fold_items(datalist, None, 0, "training"), Compose([LoadVolumed("image")]), num_workers=0)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_series_with_a_missing_slice_is_refused_by_every_bundle(name: str, tmp_path: Path) -> None:
    write_series(tmp_path, "1", count=8)[3].unlink()
    config = json.loads((BUNDLES / name / "configs" / "train.json").read_text())
    assert '"LoadImaged"' not in json.dumps(config)
    step = config["train"]["preprocessing_transforms"][0]
    load = ConfigParser({"load": step}).get_parsed_content("load")
    assert isinstance(load, Transform)
    with pytest.raises(Refusal, match=rf"\] {tmp_path.name}: ") as refusal:
        load({"image": str(tmp_path), "channel_1": str(tmp_path)})
    assert refusal.value.code == "missing-slices"


def two_places(folder: Path) -> tuple[Path, Path, Path]:
    """A bundle written for ``old``, and the same names in ``new``; only ``new`` holds images."""
    old, new = folder / "old", folder / "new"
    new.mkdir()
    write_data(new)
    shutil.copytree(new, old)
    for path in old.glob("*.nii.gz"):
        path.write_bytes(b"no image")
    bundle = copy_bundle(folder)
    config = bundle / "configs" / "train.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dataset_dir": str(old)}))
    return old, new, bundle


def test_another_datalist_is_never_read_from_the_bundles_folder(tmp_path: Path) -> None:
    _, new, bundle = two_places(tmp_path)
    short = {**SMALL, "epochs": 1, "iterations": 1, "val_interval": 2}
    result = train_bundle(
        bundle, datalist=new / "datalist.json", output=tmp_path / "run", device="cpu", overrides=short
    )
    assert result.iterations == 1


def test_monais_own_command_reads_it_from_there_too(tmp_path: Path) -> None:
    old, new, bundle = two_places(tmp_path)
    parser = ConfigParser(json.loads((bundle / "configs" / "train.json").read_text()))
    parser.update({"bundle_root": str(bundle), "datalist": str(new / "datalist.json")})
    for name in ("train#dataset#data", "validate#dataset#data", "unlabelled#data"):
        for item in parser.get_parsed_content(name):
            assert Path(item["image"]).parent == new
    parser.update({"dataset_dir": str(tmp_path / "given")})
    parser.parse(reset=True)
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("train#dataset#data")
    assert str(tmp_path / "given") in str(error.value.__cause__)
    assert old.is_dir()


def test_where_the_paths_of_a_datalist_start(tmp_path: Path) -> None:
    old, new, bundle = two_places(tmp_path)
    own = bundle / "configs" / "datalist.json"
    assert data_root(own, str(old), bundle) == str(old)
    assert data_root(own, "given", bundle) == "given"
    assert data_root(new / "datalist.json", str(old), bundle) is None
    assert data_root(new / "datalist.json", "given", bundle) == "given"
    config = {"dataset_dir": str(old)}
    given = with_folder({"datalist": str(new / "datalist.json"), "dataset_dir": str(old)}, config)
    assert data_root(new / "datalist.json", given["dataset_dir"], bundle) == f"{old}/"
    alone = {"datalist": str(new / "datalist.json")}
    assert with_folder(alone, config)["dataset_dir"] == f"{new}/"
    assert with_folder(alone, {}) == alone
    assert with_folder({"dataset_dir": "d"}, config) == {"dataset_dir": "d"}
    with pytest.raises(UsageError, match="there is no datalist"):
        with_folder({"datalist": str(tmp_path / "none.json")}, config)


def test_images_alone_follow_the_same_rule(tmp_path: Path) -> None:
    datalist = write_data(tmp_path)
    content = json.loads(datalist.read_text())
    moved = tmp_path / "lists" / "datalist.json"
    moved.parent.mkdir()
    moved.write_text(json.dumps({**content, "dataset_dir": "..", "unlabelled": ["image3.nii.gz"]}))
    items = image_items(moved, None, 0, "training")
    assert [Path(item["image"]).resolve() for item in items] == [tmp_path / f"image{n}.nii.gz" for n in (1, 3, 3)]
    with pytest.raises(UsageError, match="paths start in"):
        image_items(moved, tmp_path / "lists", 0, "training")
