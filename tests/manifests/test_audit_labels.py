"""What the audit says of label maps: each planted fault is found, and named with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.geometry import Geometry
from medseg.ingest import read_volume, save_nifti
from medseg.manifests import AuditFinding, Manifest, audit
from medseg.manifests.audit_checks import robust_z
from medseg.manifests.audit_findings import WARNINGS
from medseg.manifests.audit_shape import edge_fit, shapes_of

SHAPE, AFFINE = (32, 24, 20), np.diag([2.0, 2.0, 2.0, 1.0])
LEFT, RIGHT = 1, 2
Labels = NDArray[np.uint8]


def organs(seed: int) -> tuple[NDArray[np.int16], Labels]:
    """Two balls that differ in size, one on each side, brighter than a noisy background."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    for value, x in ((LEFT, 8), (RIGHT, 23)):
        centre = np.array([x, 12, 10]) + rng.uniform(-1, 1, 3)
        away = np.sqrt(sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True)))
        labels[away < 4 + value + rng.uniform(-0.3, 0.3)] = value
    image = np.array([0, 60, 90])[labels] + rng.normal(100, 8, SHAPE)
    return image.astype(np.int16), labels


@pytest.fixture
def datalist(tmp_path: Path) -> Manifest:
    """Ten such cases."""
    items = []
    for seed in range(10):
        image, labels = organs(seed)
        save_nifti(image, AFFINE, tmp_path / f"c{seed}.nii.gz")
        save_nifti(labels, AFFINE, tmp_path / f"c{seed}_seg.nii.gz")
        items.append({"image": f"c{seed}.nii.gz", "label": f"c{seed}_seg.nii.gz", "fold": seed % 2})
    names = {"0": "background", "1": "left", "2": "right"}
    return Manifest({"labels": names, "licence": "CC0", "training": items}, tmp_path)


def found(datalist: Manifest) -> dict[str, AuditFinding]:
    """Findings by code, without those that every such datalist has."""
    known = ("no-checksums", "no-patient-ids")
    return {finding.code: finding for finding in audit(datalist).findings if finding.code not in known}


def change(datalist: Manifest, number: int, how: Callable[[Labels], Any]) -> None:
    path = datalist.files(datalist.training[number], "label")[0]
    labels = read_volume(path)[0].copy()
    changed = how(labels)
    save_nifti(labels if changed is None else np.ascontiguousarray(changed), AFFINE, path)


def test_sound_label_maps_have_no_findings(datalist: Manifest) -> None:
    assert found(datalist) == {}


def put(value: int, *place: slice | int) -> Callable[[Labels], None]:
    def paint(labels: Labels) -> None:
        labels[place] = value

    return paint


def swapped(labels: Labels) -> Labels:
    return np.array([0, 2, 1], np.uint8)[labels]


@pytest.mark.parametrize(
    ("code", "how", "words"),
    [
        ("tiny-islands", put(LEFT, 1, 1, 1), "label 1 (left) has 1 piece besides its main part in 1 of 10 cases"),
        (
            "tiny-holes",
            put(0, 8, 12, 10),
            "label 1 (left) has 1 hole enclosed in it in 1 of 10 cases, the largest of 0.008",
        ),
        (
            "label-at-border",
            put(LEFT, slice(0, 8), 12, 10),
            "reaches the image's border in 1 of 10 cases, with up to 4",
        ),
        ("mirrored-labels", swapped, "lies right of label 2 by 30 mm; the median is 29 mm left"),
        ("mirrored-labels", lambda labels: labels[::-1], "label 1 lies right"),
        ("label-off-edges", lambda labels: np.roll(labels, 4, axis=1), "times those 3 mm beside it; the other cases'"),
        ("no-background", lambda labels: np.maximum(labels, 1), "no voxel is 0 in 1 of 10 label maps"),
    ],
)
def test_a_planted_fault_is_found(datalist: Manifest, code: str, how: Callable[[Labels], Any], words: str) -> None:
    change(datalist, 3, how)
    findings = found(datalist)
    assert code in findings
    assert words in findings[code].message
    assert findings[code].cases == ("c3",)
    assert findings[code].severity == "warning"
    assert findings[code].remedy == WARNINGS[code]


def test_another_case_s_label_does_not_fit(datalist: Manifest) -> None:
    change(datalist, 5, lambda labels: np.roll(labels, (3, -3), axis=(0, 2)))
    assert found(datalist)["label-off-edges"].cases == ("c5",)


def test_a_structure_in_one_case_only(datalist: Manifest) -> None:
    names = {**datalist.content["labels"], "3": "spot"}
    change(datalist, 2, put(3, slice(14, 16), slice(2, 4), slice(2, 4)))
    finding = found(datalist.with_content(labels=names))["label-in-one-case"]
    assert finding.message == "only one of 10 labelled cases has label 3 (spot): it cannot be both learnt and tested"
    assert finding.cases == ("c2",)


def test_what_is_usual_is_no_finding(datalist: Manifest) -> None:
    for number in range(10):
        change(datalist, number, put(LEFT, 1, 1, 1))  # a structure of several pieces
        change(datalist, number, put(RIGHT, 30, 1, 1))
        if number % 2:
            change(datalist, number, swapped)  # both sides occur
    assert not {"tiny-islands", "mirrored-labels"} & set(found(datalist))
    for number in range(10):
        change(datalist, number, put(LEFT, slice(0, 8), 12, 10))
    assert found(datalist)["label-often-at-border"].severity == "note"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"/annex/objects/MD5E-s123--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n", "a pointer of git-annex (66 bytes)"),
        (b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 1\n", "a pointer of git LFS (61 bytes)"),
    ],
)
def test_pointers_are_named(datalist: Manifest, content: bytes, words: str) -> None:
    datalist.files(datalist.training[0], "image")[0].write_bytes(content)
    datalist.files(datalist.training[1], "label")[0].write_bytes(content)
    report = audit(datalist)
    pointers = {finding.cases: finding.message for finding in report.findings if finding.code == "pointer-file"}
    assert pointers == {
        ("c0",): f"image c0.nii.gz is {words}, not the data",
        ("c1",): f"label c1_seg.nii.gz is {words}, not the data",
    }
    assert report.blocks_training
    assert not [finding for finding in report.findings if finding.code in ("undecodable", "missing-file")]


def test_a_link_to_content_that_was_not_fetched(datalist: Manifest) -> None:
    path = datalist.files(datalist.training[0], "image")[0]
    path.unlink()
    path.symlink_to("../.git/annex/objects/aa/bb/MD5E-s1--0.nii.gz")
    assert "a link of git-annex to content that is not here" in found(datalist)["pointer-file"].message


def test_raters_are_audited_one_by_one_and_files_for_structures_are_none(datalist: Manifest) -> None:
    items = datalist.training
    second = datalist.dataset_dir / "second.nii.gz"
    labels = organs(0)[1]
    labels[8, 6, 10] = LEFT
    save_nifti(labels, AFFINE, second)
    items[0] = {**items[0], "label": [{"rater": "A", "label": items[0]["label"]}, {"rater": "B", "label": second.name}]}
    assert found(datalist.with_content(training=items)) == {}
    save_nifti(np.roll(labels, 12, axis=1), AFFINE, second)
    apart = found(datalist.with_content(training=items))["raters-apart"]
    assert apart.cases == ("c0",)
    assert '"liver": FILE' in apart.remedy


def test_shapes_by_hand() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:7, 2:7, 2:7] = 1
    labels[4, 4, 4] = 0  # a hole of one voxel
    labels[3, 3, 3] = 2  # another structure is none
    labels[9, 9, 9] = 1  # an island in a corner: three faces of the grid
    shape = shapes_of(labels, Geometry(labels.shape, np.diag([1.0, 2.0, 3.0, 1.0])))[1]
    assert shape.pieces == 2
    assert shape.islands_ml == pytest.approx((0.006,))
    assert shape.holes_ml == pytest.approx((0.006,))
    assert shape.border_mm2 == pytest.approx(2 * 3 + 1 * 3 + 1 * 2)
    fortran = shapes_of(np.asfortranarray(labels), Geometry(labels.shape, np.diag([1.0, 2.0, 3.0, 1.0])))
    assert fortran[1] == shape
    centre = shapes_of(labels, Geometry(labels.shape, np.diag([-1.0, 2.0, 3.0, 1.0])))[2].centre_mm
    assert centre == pytest.approx(
        (1.5, -3.0, -4.5)
    )  # i runs to the left: 1.5 voxels before the middle lie right of it


def test_edges_fit_where_the_label_follows_them() -> None:
    image, labels = organs(0)
    geometry = Geometry(SHAPE, AFFINE)
    right, wrong = edge_fit(image, labels, geometry), edge_fit(image, np.roll(labels, 3, axis=1), geometry)
    assert right == pytest.approx(1.94, abs=0.01)
    assert wrong == pytest.approx(1.0, abs=0.2)
    assert edge_fit(np.zeros(SHAPE), labels, geometry) is None
    assert edge_fit(image, np.zeros(SHAPE, np.uint8), geometry) is None


def test_few_cases_have_no_outliers() -> None:
    assert not robust_z(np.array([1.0, 1.0, 9.0])).any()


def test_a_darkest_value_of_one_instead_of_zero_is_no_outlier(datalist: Manifest) -> None:
    for number in range(10):
        image, _ = organs(number)
        image -= image.min()
        image[:4] = 1 if number == 4 else 0
        save_nifti(image, AFFINE, datalist.files(datalist.training[number], "image")[0])
    assert "intensity-outlier" not in found(datalist)
