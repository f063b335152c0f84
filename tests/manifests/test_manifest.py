"""Reading and writing datalists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg.errors import UsageError
from medseg.manifests import Manifest

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


def test_paths_start_in_the_datalists_folder_unless_it_or_the_caller_says_otherwise(tmp_path: Path) -> None:
    items = {"training": [{"image": "a.nii"}]}
    write(tmp_path / "own.json", items)
    write(tmp_path / "named.json", {**items, "dataset_dir": "elsewhere"})
    write(tmp_path / "null.json", {**items, "dataset_dir": None})
    assert Manifest.read(tmp_path / "own.json").dataset_dir == tmp_path
    assert Manifest.read(tmp_path / "null.json").dataset_dir == tmp_path
    assert Manifest.read(tmp_path / "named.json").dataset_dir == tmp_path / "elsewhere"
    assert Manifest.read(tmp_path / "named.json", dataset_dir="given").dataset_dir == Path("given")
    write(tmp_path / "odd.json", {**items, "dataset_dir": 5})
    with pytest.raises(UsageError, match="expected the name of a folder"):
        Manifest.read(tmp_path / "odd.json")


def test_an_nnunet_dataset_obeys_a_given_folder_too(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "imagesTr" / "a_0000.nii").touch()
    (tmp_path / "labelsTr" / "a.nii").touch()
    write(tmp_path / "dataset.json", {"channel_names": {"0": "CT"}, "labels": {}, "file_ending": ".nii"})
    assert Manifest.read(tmp_path, dataset_dir="moved").dataset_dir == Path("moved")


@pytest.mark.parametrize("item", [{"image": 5}, {"image": ["a", 1]}, {"image": []}, {"image": "a", "label": {"b": 1}}])
def test_an_item_whose_files_are_no_paths_is_refused(item: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path / "datalist.json", {"training": [item]})
    with pytest.raises(UsageError, match=r"expected (one path or several|a path, an object)"):
        Manifest.read(tmp_path / "datalist.json")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text('{"labels": {"1": "a", "1": "b"}, "training": []}')
    with pytest.raises(UsageError, match="the key '1' stands twice"):
        Manifest.read(tmp_path / "datalist.json")


SMALL_VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 0.5, 1e30, "", "a.nii", "0", [], [1, "a"], {}, {"0": 1}, {"image": 2}]
)
ODD = JSON_VALUES | SMALL_VALUES
ITEM = st.dictionaries(st.sampled_from(["image", "label", "fold", "patient_id", "sha256"]), ODD, max_size=4) | ODD
LISTS = st.fixed_dictionaries(
    {},
    optional={
        "training": st.lists(ITEM, max_size=3) | ODD,
        "test": st.lists(ITEM, max_size=2) | ODD,
        **dict.fromkeys(("labels", "label_mapping", "dataset_dir", "file_ending", "dataset", "channel_names"), ODD),
        "modality": ODD,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=LISTS)
def test_whatever_a_datalist_holds_is_read_or_refused(content: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path / "datalist.json", content)
    try:
        manifest = Manifest.read(path)
        manifest.split(1, seed=0, stratify=False)
        assert manifest.labels is not None
        assert all(manifest.files(item, "image") for _, _, item in manifest.items())
    except UsageError:
        pass
