"""Datalists whose labels are several files: a mask for each structure, a map for each rater; and values merged."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import UndecidedNames, UsageError
from medseg.ingest import save_nifti
from medseg.manifests import Manifest, create
from medseg.manifests.layout_dicom import DicomChoices
from tests.manifests.conftest import AFFINE, SHAPE, image_of
from tests.manifests.test_layouts import bids, nnunet, touch


def mask(path: Path, start: int) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[start, 1:3, 1:3] = 1
    save_nifti(array, AFFINE, path)


def total_segmentator(folder: Path, **structures: tuple[str, ...]) -> Path:
    """Cases in TotalSegmentator's layout, each with masks of these names."""
    for seed, (case, names) in enumerate(structures.items()):
        save_nifti(image_of(seed), AFFINE, folder / case / "ct.nii.gz")
        for place, name in enumerate(names):
            mask(folder / case / "segmentations" / f"{name}.nii.gz", place)
    return folder


def made(folder: Path, labels: Path | None = None, **options: Any) -> Manifest:
    return create(folder, labels, checksums=False, **options)


def test_total_segmentators_layout(tmp_path: Path) -> None:
    folder = total_segmentator(tmp_path, s1=("liver", "spleen", "aorta"), s2=("liver", "spleen", "aorta"))
    manifest = made(folder)
    assert manifest.labels == {0: "background", 1: "aorta", 2: "liver", 3: "spleen"}
    chosen = create(folder, structures=["spleen", "liver"])
    assert chosen.labels == {0: "background", 1: "spleen", 2: "liver"}
    first = chosen.training[0]
    assert first["label"] == {
        "liver": "s1/segmentations/liver.nii.gz",
        "spleen": "s1/segmentations/spleen.nii.gz",
    }
    assert (first["image"], first["patient_id"], len(first["sha256"]["label"])) == ("s1/ct.nii.gz", "s1", 2)
    assert chosen.label_maps(first)[""].values.voxels == {0: int(np.prod(SHAPE)) - 8, 1: 4, 2: 4}
    assert "roi_mapping" not in chosen.content
    with pytest.raises(UsageError, match="no label has the structure 'heart'"):
        made(folder, structures=["liver", "heart"])


def test_a_structure_in_some_cases_only_is_told_and_may_be_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = total_segmentator(tmp_path, s1=("liver", "lesion"), s2=("liver",))
    with caplog.at_level(logging.WARNING):
        manifest = made(folder)
    assert "cases without a structure: lesion in 1" in caplog.text
    assert all("annotated" not in item for item in manifest.training)
    partly = made(folder, missing="unknown")
    assert [item["annotated"] for item in partly.training] == [["lesion", "liver"], ["liver"]]


def test_a_mask_that_is_spelt_otherwise_is_not_lost(tmp_path: Path) -> None:
    """Without a word the second case would be trained as if it had no liver."""
    folder = total_segmentator(tmp_path, s1=("liver", "aorta"), s2=("leber", "aorta"))
    with pytest.raises(UndecidedNames) as undecided:
        made(folder, structures=["liver"])
    lines = {line.name: line for line in undecided.value.proposals}
    assert (lines["leber"].structure, lines["aorta"].structure) == ("liver", "")
    assert lines["liver"].volume_ml == pytest.approx(4 * 2 / 1000)
    manifest = made(folder, structures=["liver"], roi_table={"leber": "liver", "liver": "liver", "aorta": ""})
    assert [set(manifest.label_maps(item)[""].values.voxels) for item in manifest.training] == [{0, 1}, {0, 1}]


def test_patterns_with_names(tmp_path: Path) -> None:
    for patient, session in (("p1", "a"), ("p1", "b"), ("p2", "a")):
        touch(*(tmp_path / patient / session / f"{name}_1.nii" for name in ("MR_T1", "MR_T2", "seg")))
    patterns = ["{patient}/{session}/MR_T1*.nii", "{patient}/{session}/MR_T2*.nii"]
    manifest = made(tmp_path, image_patterns=patterns, label_pattern="{patient}/{session}/seg*.nii")
    assert manifest.training[1] == {
        "image": ["p1/b/MR_T1_1.nii", "p1/b/MR_T2_1.nii"],
        "case_id": "p1_b",
        "patient_id": "p1",
        "session": "b",
        "label": "p1/b/seg_1.nii",
    }
    again = made(tmp_path, image_patterns=["{patient}/a/MR_T1*"], label_pattern="{patient}/a/seg*")
    assert [item["patient_id"] for item in again.training] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ("{patient}/MR*.nii", "{patient}/seg*.nii", r"seg_2\.nii and .*seg_1\.nii both match .* as the case p1"),
        ("{patient}/t1.nii", "{patient}/seg_1.nii", r"1 of 2 cases have no file that matches .*t1\.nii'.*--leave-out"),
        ("{patient}/CT*.nii", "{patient}/seg_1.nii", "nothing below .* matches"),
        ("{patient}/MR.nii", "{case}/seg_1.nii", r"tells a case by \{patient\}, .* by \{case\}"),
        ("{person}/MR.nii", "{patient}/seg_1.nii", r"has \{person\}; understood are \{patient\}"),
        ("{structure}/MR.nii", "{patient}/seg_1.nii", r"has \{structure\}"),
        ("{patient}/MR.nii", "{structure}/seg_1.nii", "does not say which part is the case"),
    ],
)
def test_patterns_with_names_that_do_not_fit_are_refused(image: str, label: str, words: str, tmp_path: Path) -> None:
    touch(*(tmp_path / "p1" / name for name in ("MR.nii", "t1.nii", "seg_1.nii", "seg_2.nii")))
    touch(tmp_path / "p2" / "MR.nii", tmp_path / "p2" / "seg_1.nii")
    with pytest.raises(UsageError, match=words):
        made(tmp_path, image_patterns=[image], label_pattern=label)


def test_what_has_no_partner_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(
        tmp_path / "p1" / "mr.nii", tmp_path / "p1" / "seg.nii", tmp_path / "p2" / "mr.nii", tmp_path / "p3" / "seg.nii"
    )
    options: dict[str, Any] = {"image_patterns": ["{patient}/mr.nii"], "label_pattern": "{patient}/seg.nii"}
    with pytest.raises(UsageError, match=r"1 of 3 cases have no file that matches '\{patient\}/mr.nii', .* p3"):
        made(tmp_path, **options)
    with caplog.at_level(logging.WARNING):
        left = made(tmp_path, dicom=DicomChoices(leave_out=True), **options)
    assert [item["case_id"] for item in left.training] == ["p1"]
    assert "the first is p2" in caplog.text


def test_raters_and_structures_by_pattern(tmp_path: Path) -> None:
    save_nifti(image_of(1), AFFINE, tmp_path / "images" / "c1.nii.gz")
    for place, rater in enumerate(("ann", "bob")):
        for name in ("Lens-Lt", "Lens-Rt"):
            mask(tmp_path / "labels" / rater / "c1" / f"{name}.nii.gz", place + 2 * name.endswith("Rt"))
    manifest = create(
        tmp_path / "images",
        tmp_path / "labels",
        image_patterns=["{patient}.nii.gz"],
        label_pattern="{rater}/{patient}/{structure}.nii.gz",
    )
    first = manifest.training[0]
    assert [one["rater"] for one in first["label"]] == ["ann", "bob"]
    assert first["label"][1]["label"]["Lens-Rt"] == "labels/bob/c1/Lens-Rt.nii.gz"
    assert len(first["sha256"]["label"]) == 4
    assert manifest.labels == {0: "background", 1: "Lens-Lt", 2: "Lens-Rt"}
    assert {rater: labels.values.voxels[1] for rater, labels in manifest.label_maps(first).items()} == {
        "ann": 4,
        "bob": 4,
    }
    manifest.write(tmp_path / "datalist.json")
    assert Manifest.read(tmp_path / "datalist.json").training == manifest.training


@pytest.mark.parametrize(
    "label",
    [
        {},
        [],
        {"liver": 1},
        {"": "a"},
        [{"rater": "A", "label": "a"}, "b"],
        [{"rater": "A", "label": "a"}, {"rater": "A", "label": "b"}],
        [{"rater": "A", "label": ["a"]}],
        [{"rater": None, "label": "a"}],
    ],
)
def test_odd_labels_are_refused_where_the_datalist_is_read(label: Any, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"training": [{"image": "a", "label": label}]}))
    with pytest.raises(UsageError, match="'label' of an item is"):
        Manifest.read(tmp_path / "d.json")


def test_bids_maps_of_one_image_are_raters_or_structures(tmp_path: Path) -> None:
    root = bids(tmp_path / "study")
    manual = root / "derivatives" / "manual"
    for path in list(manual.rglob("*_dseg.nii.gz")):
        for rater in ("1", "2"):
            shutil.copy(path, path.with_name(path.name.replace("_space-", f"_rater-{rater}_space-")))
        path.unlink()
    label = made(root).training[0]["label"]
    assert [one["rater"] for one in label] == ["1", "2"]
    for path in list(manual.rglob("*_rater-*")):
        kind = {"1": "old", "2": "new"}[path.name.split("_rater-")[1][0]]
        path.rename(
            path.with_name(
                path.name.replace("_space-T1w", "")
                .replace("rater-1", "space-T1w")
                .replace("rater-2", "space-T1w")
                .replace("_dseg", f"_desc-{kind}_dseg")
            )
        )
    with pytest.raises(UsageError, match=r"are both labels of .*--several raters"):
        made(root)
    asked = made(root, dicom=DicomChoices("raters")).training[0]["label"]
    assert [one["rater"] for one in asked] == ["new", "old"]
    for path in list(manual.rglob("*_desc-*")):
        structure = "head" if "desc-old" in path.name else "tail"
        path.rename(path.with_name(path.name.split("_desc-")[0] + f"_label-{structure}_mask.nii.gz"))
    (manual / "dseg.tsv").unlink()
    parts = made(root)
    assert {*parts.training[0]["label"]} == {"head", "tail"}
    assert parts.labels == {0: "background", 1: "head", 2: "tail"}


def test_bids_derivatives_of_several_raters(tmp_path: Path) -> None:
    root = bids(tmp_path / "study")
    shutil.copytree(root / "derivatives" / "manual", root / "derivatives" / "second")
    manifest = made(root, dicom=DicomChoices("raters"))
    assert [one["rater"] for one in manifest.training[0]["label"]] == ["manual", "second"]
    assert manifest.labels == {0: "background", 1: "head", 2: "tail"}


def test_values_are_merged_and_numbered_without_gaps(tmp_path: Path) -> None:
    path = nnunet(tmp_path)
    content = json.loads(path.read_text())
    content["labels"] = {"background": 0, "edema": 1, "necrosis": 2, "enhancing": 3, "vessel": 4, "ignore": 5}
    path.write_text(json.dumps(content))
    for parts in (["1", "2", "3"], ["edema", "necrosis", "enhancing"]):
        manifest = made(path, merges={"tumour": parts})
        assert manifest.scheme.names == {0: "background", 1: "tumour", 2: "vessel"}
        assert manifest.scheme.ignore == 5
        assert manifest.content["label_mapping"] == {"2": 1, "3": 1, "4": 2}
    moved = made(path, merges={"tumour": ["2", "3"]}, mapping={7: 2})
    assert moved.content["label_mapping"] == {"3": 2, "4": 3, "7": 2}
    assert moved.scheme.names == {0: "background", 1: "edema", 2: "tumour", 3: "vessel"}
    for merges, words in (
        ({"tumour": ["1", "9"]}, "names the value 9"),
        ({"tumour": ["1", "fat"]}, "'fat', which is neither a value nor"),
        ({"a": ["1", "2"], "b": ["2", "3"]}, "the value 2 into two structures"),
        ({"vessel": ["1", "2"]}, "a second structure called 'vessel'"),
    ):
        with pytest.raises(UsageError, match=words):
            made(path, merges=merges)


def test_a_name_and_a_mapping_make_one_structure_of_two(tmp_path: Path) -> None:
    path = nnunet(tmp_path)
    content = json.loads(path.read_text())
    content["labels"] = {"background": 0, "anterior": 1, "posterior": 2}
    path.write_text(json.dumps(content))
    manifest = made(path, names={0: "background", 1: "whole"}, mapping={2: 1})
    assert (manifest.labels, manifest.content["label_mapping"]) == ({0: "background", 1: "whole"}, {"2": 1})


def test_nnunets_regions_and_ignore_survive(tmp_path: Path) -> None:
    path = nnunet(tmp_path)
    content = json.loads(path.read_text())
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    path.write_text(json.dumps(content))
    manifest = made(path)
    assert manifest.content["labels"] == content["labels"]
    assert (manifest.scheme.regions, manifest.scheme.ignore) == ({"whole": (1, 2), "core": (2,)}, 3)
    with pytest.raises(UsageError, match="--merge is for labels that do not overlap"):
        made(path, merges={"x": ["1", "2"]})
    named = made(path, names={0: "background", 1: "rim", 2: "core"})
    assert named.scheme.ignore == 3


def test_names_are_for_labels_that_have_them(dataset: Path) -> None:
    with pytest.raises(UsageError, match="label maps, which have values"):
        made(dataset / "imagesTr", dataset / "labelsTr", structures=["liver"])
