"""Datalists from the ways in which datasets lie on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.ingest import save_nifti
from medseg.manifests import Manifest, create
from medseg.manifests.layouts import path_checksum
from tests.ingest.trees import write_series
from tests.manifests.conftest import AFFINE, image_of, label_of


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def test_folders_are_matched_by_name_with_checksums(dataset: Path) -> None:
    manifest = create(dataset / "imagesTr", dataset / "labelsTr")
    assert manifest.dataset_dir == dataset
    assert len(manifest.training) == 12
    first = manifest.training[0]
    assert (first["image"], first["label"]) == ("imagesTr/case_00x.nii.gz", "labelsTr/case_00x.nii.gz")
    data = (dataset / "labelsTr" / "case_00x.nii.gz").read_bytes()
    assert first["sha256"]["label"] == hashlib.sha256(data).hexdigest()


def test_words_at_the_end_and_channels_are_understood(tmp_path: Path) -> None:
    for case in ("a", "b"):
        touch(
            *(tmp_path / "x" / f"{case}_000{channel}.nii" for channel in (1, 0)), tmp_path / "y" / f"{case}_seg.nii.gz"
        )
    manifest = create(tmp_path / "x", tmp_path / "y")
    assert manifest.training[0]["image"] == ["x/a_0000.nii", "x/a_0001.nii"]
    assert manifest.training[0]["label"] == "y/a_seg.nii.gz"
    assert len(manifest.training[0]["sha256"]["image"]) == 2


def test_one_folder_for_each_case(tmp_path: Path) -> None:
    for case in ("a", "b"):
        touch(tmp_path / case / "ct.nii", tmp_path / case / "ct_mask.nii")
    manifest = create(tmp_path, tmp_path, checksums=False)
    assert [(item["image"], item["label"]) for item in manifest.training] == [
        ("a/ct.nii", "a/ct_mask.nii"),
        ("b/ct.nii", "b/ct_mask.nii"),
    ]


def test_images_without_labels_are_a_test_set(dataset: Path) -> None:
    assert len(create(dataset / "imagesTr").test) == 12


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.nii", tmp_path / "x" / "b.nii", tmp_path / "y" / "a.nii")
    with pytest.raises(UsageError, match="1 of 2 images have no label"):
        create(tmp_path / "x", tmp_path / "y")
    touch(tmp_path / "y" / "b.nii", tmp_path / "y" / "b_seg.nii")
    with pytest.raises(UsageError, match="could both be the label of b"):
        create(tmp_path / "x", tmp_path / "y")
    with pytest.raises(UsageError, match="cannot find"):
        create(tmp_path / "missing")


def test_two_images_of_one_label_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a_t1.nii", tmp_path / "x" / "a_t2.nii", tmp_path / "y" / "a.nii")
    with pytest.raises(UsageError, match=r"both fit the label a\.nii"):
        create(tmp_path / "x", tmp_path / "y")


def test_patients_from_a_pattern(dataset: Path) -> None:
    manifest = create(dataset / "imagesTr", dataset / "labelsTr", patient_pattern=r"case_(\d)", checksums=False)
    assert {item["patient_id"] for item in manifest.training} == {"0", "1"}
    with pytest.raises(UsageError, match="matches nothing"):
        create(dataset / "imagesTr", dataset / "labelsTr", patient_pattern="nowhere", checksums=False)
    with pytest.raises(UsageError, match="not a regular expression"):
        create(dataset / "imagesTr", dataset / "labelsTr", patient_pattern="(", checksums=False)


def nnunet(folder: Path, cases: tuple[str, ...] = ("a", "b", "c"), channels: int = 2) -> Path:
    names = {str(channel): f"mr{channel}" for channel in range(channels)}
    for case in cases:
        touch(*(folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz" for channel in range(channels)))
        touch(folder / "labelsTr" / f"{case}.nii.gz")
    content = {
        "channel_names": names,
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "licence": "CC0",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def test_nnunet_with_its_splits(tmp_path: Path) -> None:
    path = nnunet(tmp_path)
    splits = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    manifest = Manifest.read(path)
    assert [item["fold"] for item in manifest.training] == [0, 1, 1]
    assert manifest.training[0]["image"] == ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]
    assert manifest.labels == {0: "background", 1: "tumour"}
    assert manifest.content["modality"] == {"0": "mr0", "1": "mr1"}
    assert manifest.licence == "CC0"


def test_nnunet_faults_are_named(tmp_path: Path) -> None:
    path = nnunet(tmp_path)
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["a"]}, {"train": [], "val": ["a"]}]))
    with pytest.raises(UsageError, match="a is validated in folds 0 and 1"):
        Manifest.read(path)
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["z"]}]))
    with pytest.raises(UsageError, match="names the case z"):
        Manifest.read(path)
    (tmp_path / "splits_final.json").unlink()
    (tmp_path / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"case b has channels \[0\]"):
        Manifest.read(path)
    (tmp_path / "imagesTr" / "b_0000.nii.gz").unlink()
    (tmp_path / "labelsTr" / "c.nii.gz").unlink()
    with pytest.raises(UsageError, match="1 training images have no label"):
        Manifest.read(path)


def bids(root: Path) -> Path:
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Study", "License": "CC0"}))
    for subject in ("01", "02"):
        name = f"sub-{subject}_ses-a"
        anat = root / f"sub-{subject}" / "ses-a" / "anat"
        touch(anat / f"{name}_T1w.nii.gz", anat / f"{name}_T2w.nii.gz")
        labels = root / "derivatives" / "manual" / f"sub-{subject}" / "ses-a" / "anat"
        touch(labels / f"{name}_space-T1w_dseg.nii.gz")
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n1\thead\n2\ttail\n")
    return root


def test_bids_derivatives(tmp_path: Path) -> None:
    root = bids(tmp_path / "study")
    for labels in (None, root / "derivatives" / "manual"):
        manifest = create(root, labels, checksums=False)
        assert manifest.training[1] == {
            "image": "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
            "label": "derivatives/manual/sub-02/ses-a/anat/sub-02_ses-a_space-T1w_dseg.nii.gz",
            "patient_id": "sub-02",
            "session": "ses-a",
            "modality": "MR",
        }
        assert manifest.labels == {0: "background", 1: "head", 2: "tail"}
        assert (manifest.content["name"], manifest.licence) == ("Study", "CC0")


def test_a_bids_label_of_several_images_is_refused(tmp_path: Path) -> None:
    root = bids(tmp_path / "study")
    label = next(root.rglob("sub-01*dseg.nii.gz"))
    label.rename(label.with_name("sub-01_ses-a_dseg.nii.gz"))
    with pytest.raises(UsageError, match="exactly one"):
        create(root)


def test_several_bids_derivatives_are_not_guessed(tmp_path: Path) -> None:
    root = bids(tmp_path / "study")
    shutil.copytree(root / "derivatives" / "manual", root / "derivatives" / "auto")
    with pytest.raises(UsageError, match="auto, manual"):
        create(root)


def test_dicom_series_by_folder_or_case_id(tmp_path: Path) -> None:
    for series in ("1", "2"):
        write_series(tmp_path / "x" / f"scan{series}", series, PatientID=f"SECRET{series}")
    case = create(tmp_path / "x", checksums=False).test[0]["case_id"]
    save_nifti(np.ones((4, 3, 6), np.uint8), np.diag([-1.5, -1.5, 2, 1]), tmp_path / "y" / f"{case}_seg.nii.gz")
    save_nifti(np.ones((4, 3, 6), np.uint8), np.diag([-1.5, -1.5, 2, 1]), tmp_path / "y" / "scan2.nii.gz")
    manifest = create(tmp_path / "x", tmp_path / "y")
    assert [item["image"] for item in manifest.training] == ["x/scan1", "x/scan2"]
    assert [item["label"] for item in manifest.training] == [f"y/{case}_seg.nii.gz", "y/scan2.nii.gz"]
    assert len({item["patient_id"] for item in manifest.training}) == 2
    assert "SECRET" not in json.dumps(manifest.content)
    assert len(manifest.training[0]["sha256"]["image"]) == 64


def test_several_series_in_a_folder_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "x", "1")
    write_series(tmp_path / "x", "2")
    with pytest.raises(UsageError, match="2 usable series"):
        create(tmp_path / "x")


def test_the_fixture_has_no_two_cases_alike() -> None:
    assert len({label_of(seed).tobytes() for seed in range(12)}) == 12
    assert len({image_of(seed).tobytes() for seed in range(12)}) == 12
    assert AFFINE.shape == (4, 4)


def test_apple_double_files_are_no_cases_in_any_layout(dataset: Path, tmp_path: Path) -> None:
    """What macOS leaves on a foreign disk: ``._NAME`` beside each file, with attributes and no image."""
    raw = tmp_path / "Dataset001_x"
    for name in ("a", "b"):
        touch(raw / "imagesTr" / f"{name}_0000.nii", raw / "labelsTr" / f"{name}.nii")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii"}
    (raw / "dataset.json").write_text(json.dumps(content))
    before = [create(dataset / "imagesTr", dataset / "labelsTr"), Manifest.read(raw)]
    sums = path_checksum(dataset / "imagesTr")
    for folder in (dataset, raw):
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(bytes.fromhex("0005160700020000") + bytes(4088))
    after = [create(dataset / "imagesTr", dataset / "labelsTr"), Manifest.read(raw)]
    assert [m.content for m in after] == [m.content for m in before]
    assert path_checksum(dataset / "imagesTr") == sums
