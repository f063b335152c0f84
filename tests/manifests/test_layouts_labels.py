"""Labels at import: names, mappings, patterns, folders of patients, and what is said of labels that are not read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli.manifest import manifest_app
from medseg.errors import UsageError
from medseg.ingest import save_nifti
from medseg.manifests import Manifest, audit, create
from tests.manifests.conftest import AFFINE, label_of
from tests.manifests.test_layouts import nnunet, touch

SEG = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}
RTSTRUCT = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "Modality": "RTSTRUCT"}


def with_labels(path: Path, labels: dict[str, Any]) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))
    return path


def test_nnunets_regions_and_ignore_are_kept(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    path = with_labels(nnunet(tmp_path), labels)
    scheme = Manifest.read(path).scheme
    assert (scheme.regions, scheme.ignore) == ({"whole": (1, 2), "core": (2,)}, 3)
    made = create(path, checksums=False)
    assert (made.content["labels"], made.content["regions_class_order"]) == (labels, [1, 2])
    assert made.scheme == scheme


def test_ignore_may_be_mapped_and_regions_may_be_named_anew(tmp_path: Path) -> None:
    path = with_labels(nnunet(tmp_path), {"background": 0, "tumour": 1, "ignore": 2})
    manifest = create(path, mapping={2: 0}, checksums=False)
    assert manifest.content["labels"] == {"0": "background", "1": "tumour"}
    assert manifest.content["label_mapping"] == {"2": 0}
    with_labels(path, {"background": 0, "whole": [1, 2], "core": 2})
    named = create(path, names={0: "background", 1: "rim", 2: "core"}, checksums=False)
    assert named.labels == {0: "background", 1: "rim", 2: "core"}


def test_a_mapping_is_recorded_and_counts_everywhere(dataset: Path, tmp_path: Path) -> None:
    """From the command line to the audit and the split; the label files stay as they are."""
    for index, path in enumerate(sorted((dataset / "labelsTr").iterdir())):
        label = label_of(index)
        save_nifti(np.select([label == 1, label == 2], [7, 200], 0).astype(np.int16), AFFINE, path)
    files = [
        "--images",
        str(dataset / "imagesTr"),
        "--labels",
        str(dataset / "labelsTr"),
        "-o",
        str(tmp_path / "d.json"),
    ]
    meanings = ["--map", "7=1,200=2", "--label", "1=block", "--label", "2=dot", "--licence", "CC0"]
    result = CliRunner().invoke(manifest_app, ["create", *files, *meanings])
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(tmp_path / "d.json").split(3, seed=0)
    assert manifest.scheme.mapping == {7: 1, 200: 2}
    assert manifest.labels == {0: "background", 1: "block", 2: "dot"}
    assert audit(manifest).findings == []


def test_a_mapping_renames_what_the_dataset_declares(tmp_path: Path) -> None:
    path = with_labels(nnunet(tmp_path), {"background": 0, "tumour": 255})
    assert create(path, mapping={255: 1}, checksums=False).labels == {0: "background", 1: "tumour"}
    with pytest.raises(UsageError, match="--map makes 3 a label, which has no name"):
        create(path, mapping={4: 3}, checksums=False)


def test_names_come_from_the_folders_where_files_share_them(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        touch(
            tmp_path / "study" / patient / "scan" / "image.nii.gz",
            tmp_path / "study" / patient / "scan" / "label.nii.gz",
        )
    manifest = create(tmp_path / "study", tmp_path / "study", checksums=False)
    assert [(item["case_id"], item["patient_id"], item["label"]) for item in manifest.training] == [
        ("p1", "p1", "p1/scan/label.nii.gz"),
        ("p2", "p2", "p2/scan/label.nii.gz"),
    ]


def test_the_first_folder_is_the_patient(tmp_path: Path) -> None:
    for visit in ("p1/a", "p1/b", "p2/a"):
        touch(tmp_path / "images" / visit / "ct.nii", tmp_path / "labels" / visit / "seg.nii")
    manifest = create(tmp_path / "images", tmp_path / "labels", checksums=False)
    assert [(item["case_id"], item["patient_id"]) for item in manifest.training] == [
        ("p1_a", "p1"),
        ("p1_b", "p1"),
        ("p2_a", "p2"),
    ]


def test_channels_in_a_folder_of_their_patient(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        touch(*(tmp_path / patient / f"mr_000{channel}.nii" for channel in (0, 1)), tmp_path / patient / "mr_seg.nii")
    first = create(tmp_path, tmp_path, checksums=False).training[0]
    assert (first["image"], first["label"]) == (["p1/mr_0000.nii", "p1/mr_0001.nii"], "p1/mr_seg.nii")


def test_patterns_say_what_names_do_not(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        touch(*(tmp_path / patient / "mr" / name for name in ("t1.nii", "t2.nii", "liver.nii", "other.nii")))
    with pytest.raises(UsageError, match=r"are both called p1; .*--image '\*/"):
        create(tmp_path, checksums=False)
    manifest = create(
        tmp_path, image_patterns=["*/*/t1.nii", "*/*/t2.nii"], label_pattern="*/*/liver.nii", checksums=False
    )
    assert manifest.training[1] == {
        "image": ["p2/mr/t1.nii", "p2/mr/t2.nii"],
        "case_id": "p2_mr",
        "patient_id": "p2",
        "label": "p2/mr/liver.nii",
    }
    flat = create(tmp_path, image_patterns=["**/t1.ni?"], checksums=False)
    assert [item["patient_id"] for item in flat.test] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("images", "label", "words"),
    [
        (["p1/t1.nii"], None, "has no wildcard"),
        (["*/t9.nii"], None, "nothing below"),
        (["*/t1.nii"], "*/only.nii", r"1 of 2 cases have no file that matches '\*/only\.nii', the first is p2"),
        (["*/only.nii"], "*/t1.nii", r"no file that matches '\*/only\.nii'"),
        ([], "*/t1.nii", "--label without --image"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(images: list[str], label: str | None, words: str, tmp_path: Path) -> None:
    touch(tmp_path / "p1" / "t1.nii", tmp_path / "p2" / "t1.nii", tmp_path / "p1" / "only.nii")
    with pytest.raises(UsageError, match=words):
        create(tmp_path, image_patterns=images, label_pattern=label, checksums=False)


def test_a_rare_structure_is_told_when_the_folds_are_made(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index, path in enumerate(sorted((dataset / "labelsTr").iterdir())):
        label = label_of(index)
        save_nifti(label if index == 1 else np.where(label == 2, 0, label).astype(np.uint8), AFFINE, path)
    manifest = create(dataset / "imagesTr", dataset / "labelsTr", names={0: "background", 1: "block", 2: "dot"})
    with caplog.at_level(logging.WARNING):
        made = manifest.split(3, seed=0)
    assert f"training of fold {made.training[1]['fold']} never sees 2 (dot)" in caplog.text


@pytest.mark.parametrize(
    ("rows", "words"), [("1\thead\n1\ttail\n", "two names for the value 1"), ("-1\thead\n", "labels are whole numbers")]
)
def test_a_bids_table_that_is_odd_is_refused(rows: str, words: str, tmp_path: Path) -> None:
    from tests.manifests.test_layouts import bids

    root = bids(tmp_path / "study")
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n" + rows)
    with pytest.raises(UsageError, match=words):
        create(root, checksums=False)
