"""Regions from nnU-Net's ``dataset.json`` through training to DICOM objects and scores, by the front door."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli.main import app, load_commands
from medseg.ingest import read_volume, save_nifti
from medseg.sharing import verify
from medseg.trust.trust_files import trust_state
from tests.inference.bundles import run_monai
from tests.outputs.series import CODES, write_series

_SHAPE = (24, 24, 11)
_AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
_TABLE = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
_NAME = "phantom_mri_tumour"


def _patient(number: int) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
    """Four channels of nested balls, as BraTS has them: each channel shows another of the three parts."""
    generator = np.random.default_rng(number)
    axes = np.stack(np.meshgrid(*map(np.arange, _SHAPE), indexing="ij"), axis=-1) * [1, 1, 2]
    distance = np.linalg.norm(axes - generator.integers(10, 14, 3), axis=-1)
    label = (np.less.outer(distance, [9, 6, 3])).sum(axis=-1).astype(np.uint8)
    shown = [label > 0, label > 1, label > 2, label == 1]
    return [(s * 300 + generator.normal(100, 20, _SHAPE)).astype(np.float32) for s in shown], label


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's raw layout; in one case a slice was judged by nobody."""
    folder = tmp_path_factory.mktemp("Dataset001_Phantom")
    for number in range(3):
        channels, label = _patient(number)
        for channel, image in enumerate(channels):
            save_nifti(image, _AFFINE, folder / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz")
        if number == 2:
            label[:, :, 5] = 4
        save_nifti(label, _AFFINE, folder / "labelsTr" / f"case_{number}.nii.gz")
    content = {
        "channel_names": {str(channel): "MRI" for channel in range(4)},
        "labels": _TABLE,
        "regions_class_order": [1, 2, 3],
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def _medseg(*arguments: object) -> str:
    load_commands(str(arguments[0]))
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture(scope="module")
def bundle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned from the data set, trained for two iterations."""
    folder = tmp_path_factory.mktemp("bundles")
    _medseg("manifest", "create", "--images", dataset / "dataset.json", "-o", folder / "list.json")
    _medseg("bundle", "new", _NAME, "--datalist", folder / "list.json", "-o", folder, "--minutes", 2)
    settings = ["epochs=1", "iterations=2", "batch_size=2", "val_interval=1", "warm_up=0", "ramp=1", "ema_decay=0.5"]
    options = [part for setting in settings for part in ("--set", setting)]
    _medseg("train", folder / _NAME, "--device", "cpu", "-o", folder / "run", "--publish", *options)
    metadata = json.loads((folder / _NAME / "configs" / "metadata.json").read_text())
    codes = [*CODES.values(), next(iter(CODES.values()))]
    metadata["network_data_format"]["outputs"]["pred"]["segment_codes"] = dict(zip("123", codes, strict=True))
    (folder / _NAME / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder / _NAME


def test_what_is_planned_is_a_sigmoid_for_every_region(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.scheme.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (opened.labels, opened.output_channels) == ({1: "whole", 2: "core", 3: "enhancing"}, 3)
    train = opened.config("train")
    assert train["adversary"]["activation"] == "sigmoid"
    assert train["loss"] == {"_target_": "medseg.training.KnownDiceCELoss", "sigmoid": True}
    assert "regions" in _medseg("bundle", "info", bundle)
    assert not [finding for finding in verify(bundle) if finding.severity == "block"]
    assert "regions that overlap" in trust_state(opened).message
    with (bundle.parent / "run" / "metrics.csv").open() as handle:
        (last,) = list(csv.DictReader(handle))
    assert {f"val_dice_{name}" for name in opened.labels.values()} <= last.keys()
    assert list((bundle.parent / "run" / "samples").glob("*.png"))


def test_regions_reach_the_label_map_the_scores_and_dicom(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    datalist = bundle.parent / "list.json"
    _medseg("infer", bundle, datalist, "-o", found, "--device", "cpu")
    scores = tmp_path / "scores"
    _medseg("evaluate", found, datalist, "-o", scores)
    with (scores / "metrics.csv").open() as handle:
        rows = {(row["case_id"], row["name"]): row for row in csv.DictReader(handle)}
    run = json.loads((found / "run.json").read_text())
    masks = _masks_of_monai(bundle, dataset, tmp_path)
    for case in run["cases"]:
        number = int(case["case_id"].split("_")[1])
        predicted = read_volume(found / f"{case['case_id']}_seg.nii.gz")[0]
        reference = read_volume(dataset / "labelsTr" / f"case_{number}.nii.gz")[0]
        judged = reference != 4
        for channel, (name, values) in enumerate(Bundle.open(bundle).scheme.regions.items()):
            ours, theirs = np.isin(predicted, values), np.isin(reference, values) & judged
            by_hand = 2.0 * (ours & theirs).sum() / ((ours & judged).sum() + theirs.sum())
            assert float(rows[case["case_id"], name]["dice"]) == pytest.approx(by_hand)
            volume = next(one["volume_ml"] for one in case["structures"] if one["name"] == name)
            assert volume == pytest.approx(ours.sum() * 2 / 1000)
            # a voxel is of the region if MONAI says so, or if it is of one painted over it
            assert np.mean(ours != masks[number][..., channel:].any(axis=-1)) < 1e-4
    report = _medseg("report", found)
    assert "report.html" in report or list(found.glob("*.html"))


def _masks_of_monai(bundle: Path, dataset: Path, folder: Path) -> dict[int, NDArray[np.bool_]]:
    run_monai(bundle, dataset, folder / "monai")
    files = sorted((folder / "monai").rglob("*_seg.nii.gz"))
    return {int(file.name.split("_")[1]): _channels(file) for file in files}


def _channels(file: Path) -> NDArray[np.bool_]:
    import nibabel as nib

    image: Any = nib.load(file)
    return np.asarray(image.dataobj).reshape(*_SHAPE, -1) > 0


def test_segments_of_a_dicom_study_overlap(bundle: Path, tmp_path: Path) -> None:
    channels, _ = _patient(0)
    for number, image in enumerate(channels):
        record, _ = write_series(tmp_path / "in" / str(number), np.diag([1.0, 1.0, 2.0, 1.0]), _SHAPE)
        for k, file in enumerate(record.files):
            written = pydicom.dcmread(file)
            written.Modality = "MR"
            written.PixelData = image[:, :, k].T.round().astype(np.int16).tobytes()
            written.save_as(file)
    items = [{"image": [f"in/{number}" for number in range(4)], "case_id": "p"}]
    (tmp_path / "list.json").write_text(json.dumps({"test": items}))
    _medseg("infer", bundle, tmp_path / "list.json", "-o", tmp_path / "o", "--write", "nifti,seg,rtstruct,sr")
    labels = read_volume(tmp_path / "o" / "p_seg.nii.gz")[0]
    case = json.loads((tmp_path / "o" / "run.json").read_text())["cases"][0]
    assert not case["not_written"]
    segmentation = pydicom.dcmread(next((tmp_path / "o").glob("p*seg*.dcm")))
    present = [name for name, values in Bundle.open(bundle).scheme.regions.items() if np.isin(labels, values).any()]
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == present
    structure_set = pydicom.dcmread(next((tmp_path / "o").glob("p*rtstruct*.dcm")))
    assert [roi.ROIName for roi in structure_set.StructureSetROISequence] == present


def _hippocampi(data: Path, folder: Path, cases: int) -> list[str]:
    """Real cases in nnU-Net's raw layout, the whole hippocampus as a region over its posterior part."""
    names = sorted(file.name for file in (data / "msd_hippocampus" / "imagesTr").glob("*.nii.gz"))[:cases]
    for name in names:
        for source, target in (("imagesTr", name.replace(".nii.gz", "_0000.nii.gz")), ("labelsTr", name)):
            (folder / source).mkdir(parents=True, exist_ok=True)
            (folder / source / target).symlink_to((data / "msd_hippocampus" / source / name).resolve())
    table = {"background": 0, "whole": [1, 2], "posterior": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": table, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": cases}))
    return names


@pytest.mark.slow
def test_the_whole_hippocampus_is_learnt_as_a_region(real_data: Path, tmp_path: Path) -> None:
    """Twenty cases, 200 iterations without the discriminator: two CPU minutes."""
    _hippocampi(real_data, tmp_path / "raw", 20)
    made, split = tmp_path / "list.json", tmp_path / "split.json"
    _medseg("manifest", "create", "--images", tmp_path / "raw" / "dataset.json", "-o", made)
    _medseg("manifest", "split", made, "--folds", 4, "--seed", 0, "-o", split)
    _medseg("bundle", "new", "hippocampus_mri_regions", "--datalist", split, "-o", tmp_path)
    bundle, found = tmp_path / "hippocampus_mri_regions", tmp_path / "found"
    settings = ["epochs=4", "val_interval=4", "warm_up=1000", "patch_size=[32,32,32]", "learning_rate=0.005"]
    options = [part for setting in settings for part in ("--set", setting)]
    _medseg("train", bundle, "--fold", 0, "--device", "cpu", "-o", tmp_path / "run", "--publish", *options)
    _medseg("infer", bundle, split, "--fold", 0, "-o", found, "--device", "cpu")
    _medseg("evaluate", found, split, "--fold", 0, "-o", tmp_path / "scores")
    with (tmp_path / "scores" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 10
    for row in rows:
        predicted = read_volume(found / f"{row['case_id']}_seg.nii.gz")[0]
        name = row["case_id"].removesuffix("_0000")
        reference = read_volume(real_data / "msd_hippocampus" / "labelsTr" / f"{name}.nii.gz")[0]
        ours, theirs = (map_ > (row["name"] == "posterior") for map_ in (predicted, reference))
        assert float(row["dice"]) == pytest.approx(2.0 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    whole = [float(row["dice"]) for row in rows if row["name"] == "whole"]
    assert np.mean(whole) > 0.7
