"""Reading and writing datalists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import UsageError
from medseg.manifests import Manifest
from medseg.manifests.manifest import parse_labels

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
RESERVED = {"training", "validation", "test", "testing", "dataset_dir", "file_ending", "image", "label"}
UNKNOWN = st.dictionaries(st.text().filter(lambda key: key not in RESERVED), JSON_VALUES, max_size=4)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@settings(max_examples=25, deadline=None)
@given(top=UNKNOWN, of_item=UNKNOWN)
def test_unknown_keys_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, top: Any, of_item: Any) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    content = {**top, "training": [{**of_item, "image": "a.nii", "label": ["b.nii", "c.nii"]}]}
    first = Manifest.read(write(folder / "in.json", content))
    first.write(folder / "out.json")
    assert json.loads((folder / "out.json").read_text()) == content
    assert Manifest.read(folder / "out.json").content == first.content


def test_paths_lead_to_the_same_files_from_wherever_it_is_written(tmp_path: Path) -> None:
    start = tmp_path / "data"
    start.mkdir()
    original = Manifest.read(write(start / "datalist.json", {"training": [{"image": "./a.nii"}]}))
    elsewhere = tmp_path / "lists" / "deep" / "datalist.json"
    original.write(elsewhere)
    copied = Manifest.read(elsewhere)
    assert json.loads(elsewhere.read_text())["dataset_dir"] == "../../data"
    (path,) = copied.files(copied.training[0], "image")
    assert path.resolve() == start / "a.nii"
    copied.write(start / "back.json")
    assert "dataset_dir" not in json.loads((start / "back.json").read_text())


def test_a_given_dataset_dir_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", {"dataset_dir": "elsewhere", "training": [{"image": "a.nii"}]})
    assert Manifest.read(path).dataset_dir == tmp_path / "elsewhere"
    assert Manifest.read(path, dataset_dir="/mnt").files({"image": "a.nii"}, "image") == [Path("/mnt/a.nii")]


def test_an_msd_dataset_is_read_as_it_is(tmp_path: Path) -> None:
    content = {
        "labels": {"0": "background", "1": "liver"},
        "licence": "CC",
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
    }
    write(tmp_path / "dataset.json", content)
    manifest = Manifest.read(tmp_path)
    assert manifest.training == [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    assert manifest.test == [{"image": "imagesTs/b.nii.gz"}]
    assert manifest.labels == {0: "background", 1: "liver"}
    assert manifest.licence == "CC"


def test_a_fold_is_what_is_held_out() -> None:
    items = [{"image": str(number), "fold": number % 3} for number in range(7)]
    train, held_out = Manifest({"training": items}, Path()).fold(1)
    assert [item["image"] for item in held_out] == ["1", "4"]
    assert len(train) == 5
    with pytest.raises(UsageError, match=r"found: \[0, 1, 2\]"):
        Manifest({"training": items}, Path()).fold(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[1, 2]", "JSON list"),
        ("{}", "none of the lists"),
        ('{"training": 3}', "expected a list of items"),
        ('{"training": [{"label": "a"}]}', "without an image"),
        ('{"training": [7]}', "without an image"),
    ],
)
def test_what_is_no_datalist_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        Manifest.read(tmp_path / "list.json")


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Manifest.read(tmp_path / "missing.json")


def test_labels_of_both_traditions() -> None:
    assert parse_labels({"0": "background", "2": "b"}) == {0: "background", 2: "b"}
    assert parse_labels({"background": 0, "whole": [1, 2], "core": [2], "edge": 1}) == {
        0: "background",
        1: "edge",
        2: "whole",
    }
    assert parse_labels("nonsense") == {}
