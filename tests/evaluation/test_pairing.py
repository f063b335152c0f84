from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import UsageError
from medseg.evaluation.pairing import case_id_of_name, collect, pair_up
from medseg.evaluation.structures import read_scheme


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("hippocampus_001_seg.nii.gz", "hippocampus_001"),
        ("hippocampus_001.nii.gz", "hippocampus_001"),
        ("a.b.nii", "a.b"),
        ("x_seg.mha", "x"),
        ("x.seg.nrrd", "x.seg"),
        ("series-0123456789ab_seg.nii.gz", "series-0123456789ab"),
    ],
)
def test_case_ids_are_file_names_without_extension_and_seg(name: str, case_id: str) -> None:
    assert case_id_of_name(name) == case_id


def test_folders_pair_by_case_id(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", "a_seg.nii.gz", "b_seg.nii.gz", "a_seg.dcm", "run.json", "._a_seg.nii.gz")
    references = touch(tmp_path / "r", "a.nii", "c.mha", "notes.txt")
    pairs, unpaired = pair_up(collect(predictions, "predictions"), collect(references, "references"))
    assert [(pair.case_id, pair.prediction.path.name, pair.reference.path.name) for pair in pairs] == [
        ("a", "a_seg.nii.gz", "a.nii")
    ]
    assert unpaired == {"predictions": ["b"], "references": ["c"]}


def test_two_files_of_one_case_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both belong to case 'a'"):
        collect(touch(tmp_path, "a.nii.gz", "a_seg.nii.gz"), "predictions")


def test_a_folder_without_label_maps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no label maps"):
        collect(touch(tmp_path, "notes.txt"), "references")


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        collect(tmp_path / "nowhere", "references")


def test_a_datalist_names_references_by_their_images(tmp_path: Path) -> None:
    items = [
        {"image": "images/case_7.nii.gz", "label": "labels/other.nii.gz", "patient_id": "p1", "site": "north"},
        {"image": "images/unlabelled.nii.gz"},
        {"image": "series/1", "label": "labels/x.nii.gz", "case_id": "series-0123456789ab"},
    ]
    source = write(tmp_path / "list.json", {"labels": {"0": "background", "1": "liver"}, "training": items})
    found = collect(source, "references")
    assert {case: file.path for case, file in found.files.items()} == {
        "case_7": tmp_path / "labels/other.nii.gz",
        "series-0123456789ab": tmp_path / "labels/x.nii.gz",
    }
    assert found.files["case_7"].patient == "p1"
    assert found.files["case_7"].attributes["site"] == "north"
    assert found.scheme.structures == {1: "liver"}


def test_a_datalist_of_predictions_prefers_pred(tmp_path: Path) -> None:
    items = [{"image": "a.nii.gz", "label": "reference.nii.gz", "pred": "prediction.nii.gz"}]
    found = collect(write(tmp_path / "list.json", {"training": items}), "predictions")
    assert found.files["a"].path.name == "prediction.nii.gz"


@pytest.mark.parametrize(
    "content",
    [
        {"0": "background", "1": "liver", "2": "spleen"},
        {"background": 0, "liver": 1, "spleen": 2},
        {"labels": {"0": "background", "1": "liver", "2": "spleen"}, "training": []},
        {
            "network_data_format": {
                "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver", "2": "spleen"}}}
            }
        },
    ],
)
def test_labels_come_in_several_forms(content: Any, tmp_path: Path) -> None:
    assert read_scheme(write(tmp_path / "labels.json", content)).structures == {1: "liver", 2: "spleen"}


def test_a_bundle_folder_declares_labels(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    channels = {"0": "background", "1": "liver"}
    content = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    write(tmp_path / "configs" / "metadata.json", content)
    assert read_scheme(tmp_path).structures == {1: "liver"}


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    scheme = read_scheme(write(tmp_path / "l.json", {"1": "node", "2": "node"}))
    assert scheme.structures == {1: "node (1)", 2: "node (2)"}


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"labels": {}}'])
def test_labels_that_are_none_are_errors(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UsageError):
        read_scheme(tmp_path / "labels.json")


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bundle folder"):
        read_scheme(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"background": 0, "whole": []}', r"the region 'whole' \(no value\)"),
        ('{"labels": {"background": 0, "ignore": 2}}', "declares no labels"),
        (
            '{"network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "ignore"}}}}}',
            "ignore",
        ),
        ('{"1": "front", "1": "back"}', "the key '1' stands twice"),
        ('{"front": 1, "back": 1}', "two names for the value 1"),
        ('{"name": "study", "numTraining": 3, "training": []}', "declares no labels"),
    ],
)
def test_a_table_of_anything_but_structures_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_scheme(tmp_path / "labels.json")
