"""The audit: one planted fault at a time must be found, and a sound dataset must be found sound."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.geometry import Geometry
from medseg.ingest import save_nifti
from medseg.manifests import AuditFinding, AuditReport, Manifest, audit
from medseg.manifests.audit_checks import robust_z
from medseg.manifests.audit_facts import content_hash, value_step
from medseg.manifests.audit_findings import NOTES, WARNINGS
from tests.manifests.conftest import AFFINE, SHAPE, image_of, label_of


def found(manifest: Manifest, *ignore: str) -> dict[str, AuditFinding]:
    """Findings by code; checksums are left out where a test changes files on purpose."""
    return {finding.code: finding for finding in audit(manifest).findings if finding.code not in ignore}


def label_file(manifest: Manifest, index: int = 0) -> Path:
    return manifest.files(manifest.training[index], "label")[0]


def image_file(manifest: Manifest, index: int = 0) -> Path:
    return manifest.files(manifest.training[index], "image")[0]


def changed(manifest: Manifest, index: int, **values: Any) -> Manifest:
    items = manifest.training
    items[index] = {**items[index], **values}
    return manifest.with_content(training=items)


def test_a_sound_dataset_has_no_findings(manifest: Manifest) -> None:
    report = audit(manifest)
    assert report.findings == []
    assert (report.n_cases, report.n_patients, report.blocks_training) == (12, 12, False)


def shift(affine: np.ndarray, mm: float) -> np.ndarray:
    moved = affine.copy()
    moved[0, 3] += mm
    return moved


def turned(affine: np.ndarray, degrees: float) -> np.ndarray:
    rotation = np.eye(4)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return np.asarray(rotation @ affine)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (shift(AFFINE, 1.0), "shifted by (1, 0, 0) mm"),
        (AFFINE @ np.diag([-1.0, 1, 1, 1]), "axes LAS, the image's are RAS"),
        (AFFINE @ np.diag([1.0, 1, 1.1, 1]), "1.00×1.00×2.20 mm"),
        (turned(AFFINE, 1.0), "rotated by 1"),
    ],
)
def test_a_label_on_another_grid_blocks_training(manifest: Manifest, affine: np.ndarray, words: str) -> None:
    save_nifti(label_of(0), affine, label_file(manifest))
    findings = found(manifest, "checksum-mismatch")
    assert list(findings) == ["geometry-mismatch"]
    assert words in findings["geometry-mismatch"].message
    assert findings["geometry-mismatch"].cases == ("case_00x",)
    assert audit(manifest).blocks_training


def test_a_label_of_another_shape_blocks_training(manifest: Manifest) -> None:
    save_nifti(label_of(0)[:-1], AFFINE, label_file(manifest))
    assert "7×9×10" in found(manifest)["geometry-mismatch"].message


def test_rounding_noise_is_told_from_a_mismatch(manifest: Manifest) -> None:
    save_nifti(label_of(0), shift(AFFINE, 0.01), label_file(manifest))
    findings = found(manifest, "checksum-mismatch")
    assert list(findings) == ["rounding-noise"]
    assert findings["rounding-noise"].severity == "note"
    assert "0.01 mm" in findings["rounding-noise"].message


def set_label(fill: Callable[[np.ndarray], Any]) -> Callable[[Manifest], None]:
    def apply(manifest: Manifest) -> None:
        label = label_of(0).astype(np.float32)
        fill(label)
        save_nifti(label, AFFINE, label_file(manifest))

    return apply


def overwrite_image(array: np.ndarray) -> Callable[[Manifest], None]:
    return lambda manifest: save_nifti(array, AFFINE, image_file(manifest))


def save_by_nibabel(array: np.ndarray, affine: np.ndarray | None) -> Callable[[Manifest], None]:
    return lambda manifest: nib.save(nib.Nifti1Image(array, affine), image_file(manifest))


def write_nan(manifest: Manifest) -> None:
    array = image_of(0).astype(np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, AFFINE), image_file(manifest))


FAULTS: dict[str, Callable[[Manifest], Any]] = {
    "missing-file": lambda manifest: label_file(manifest).unlink(),
    "unexpected-labels": set_label(lambda label: label.__setitem__((0, 0, 0), 7)),
    "fractional-labels": set_label(lambda label: label.__setitem__((0, 0, 0), 0.5)),
    "empty-label": set_label(lambda label: label.fill(0)),
    "constant-image": overwrite_image(np.zeros(SHAPE, np.int16)),
    "intensity-outlier": overwrite_image((image_of(0) - 100) * 6 + 400),
    "duplicate-content": overwrite_image(image_of(1)),
    "non-finite": write_nan,
    "unreadable": lambda manifest: image_file(manifest).write_bytes(b"not an image"),
    "not-3d": save_by_nibabel(np.zeros((3, 3, 3, 2), np.int16), AFFINE),
    "no-geometry": save_by_nibabel(image_of(0), None),
}


@pytest.mark.parametrize("code", list(FAULTS))
def test_a_planted_fault_is_found_and_named(manifest: Manifest, code: str) -> None:
    FAULTS[code](manifest)
    findings = found(manifest, "checksum-mismatch")
    assert code in findings
    assert "case_00x" in findings[code].cases
    assert findings[code].remedy
    assert code not in NOTES
    assert findings[code].severity == ("warning" if code in WARNINGS else "error")


def test_a_changed_file_is_noticed(manifest: Manifest) -> None:
    array = image_of(0)
    array[0, 0, 0] += 1
    save_nifti(array, AFFINE, image_file(manifest))
    findings = found(manifest)
    assert list(findings) == ["checksum-mismatch"]


def test_the_same_volume_in_another_orientation_is_a_duplicate(manifest: Manifest) -> None:
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SHAPE[0] - 1
    save_nifti(image_of(1)[::-1].astype(np.float32), flipped, image_file(manifest))
    assert found(manifest, "checksum-mismatch")["duplicate-content"].cases == ("case_00x", "case_01x")


def test_the_same_label_twice_is_a_warning(manifest: Manifest) -> None:
    shutil.copy(label_file(manifest, 1), label_file(manifest, 0))
    findings = found(manifest, "checksum-mismatch")
    assert list(findings) == ["duplicate-label"]
    assert not audit(manifest.with_content(training=[{**i, "sha256": {}} for i in manifest.training])).blocks_training


def test_one_patient_in_two_folds(manifest: Manifest) -> None:
    leaking = changed(changed(manifest, 0, patient_id="same", fold=0), 1, patient_id="same", fold=2)
    findings = found(leaking)
    assert list(findings) == ["patient-in-two-folds"]
    assert findings["patient-in-two-folds"].cases == ("case_00x", "case_01x")
    assert audit(leaking).blocks_training


def test_one_patient_in_training_and_test(manifest: Manifest) -> None:
    moved = manifest.training[-1]
    held_out = {key: value for key, value in moved.items() if key != "fold"} | {"patient_id": "case_00x"}
    leaking = manifest.with_content(training=manifest.training[:-1], test=[held_out])
    assert list(found(leaking)) == ["patient-in-test"]


def test_crops_of_one_scan_under_two_names_are_suspected(manifest: Manifest) -> None:
    """Values in steps of 6.13919, as a scanner's scale factor leaves them, in two cases of different folds."""
    for index in range(2):
        save_nifti((image_of(index) * 6.13919).astype(np.float32), AFFINE, image_file(manifest, index))
    leaking = changed(changed(manifest, 0, fold=0), 1, fold=1)
    ignore = ("checksum-mismatch", "intensity-outlier")
    findings = found(leaking, *ignore)
    assert list(findings) == ["suspected-same-scan"]
    assert findings["suspected-same-scan"].severity == "warning"
    together = changed(changed(manifest, 0, fold=1), 1, fold=1)
    assert list(found(together, *ignore)) == []


def test_what_is_not_declared_is_said(manifest: Manifest) -> None:
    items = [{key: item[key] for key in ("image", "label")} for item in manifest.training]
    bare = Manifest({"training": items}, manifest.dataset_dir)
    assert set(found(bare)) == {"no-licence", "no-folds", "no-patient-ids", "no-checksums", "no-declared-labels"}
    assert not audit(bare).blocks_training


def test_labels_that_never_occur_and_cases_without_folds(manifest: Manifest) -> None:
    items = manifest.training
    del items[0]["fold"]
    labels = {**manifest.content["labels"], "3": "unicorn"}
    findings = found(manifest.with_content(training=items, labels=labels))
    assert set(findings) == {"label-never-present", "partly-split"}
    assert "3 (unicorn)" in findings["label-never-present"].message


def test_nothing_labelled_and_no_label(manifest: Manifest) -> None:
    for index in range(12):
        save_nifti(np.zeros(SHAPE, np.uint8), AFFINE, label_file(manifest, index))
    assert "nothing-labelled" in found(manifest)
    items = [{key: value for key, value in item.items() if key != "label"} for item in manifest.training]
    assert "no-label" in found(manifest.with_content(training=items))
    assert "no-items" in found(manifest.with_content(training=[]))


def test_channels_must_agree(manifest: Manifest) -> None:
    first = manifest.training[0]["image"]
    save_nifti(image_of(50), shift(AFFINE, 3.0), manifest.dataset_dir / "second.nii.gz")
    messages = [
        finding.message
        for finding in audit(changed(manifest, 0, image=[first, "second.nii.gz"])).findings
        if finding.code == "channel-mismatch"
    ]
    assert len(messages) == 2
    assert any("2 channels" in message for message in messages)
    assert any("shifted by (3, 0, 0) mm" in message for message in messages)


@pytest.mark.parametrize(("shift_mm", "code"), [(0.0, "channels-on-different-grids"), (500.0, "channel-mismatch")])
def test_channels_on_other_grids_must_cover_the_first(manifest: Manifest, shift_mm: float, code: str) -> None:
    first = manifest.training[0]["image"]
    coarse = shift(AFFINE, shift_mm) @ np.diag([2.0, 2.0, 1.0, 1.0])
    halved = ((SHAPE[0] + 1) // 2, (SHAPE[1] + 1) // 2, SHAPE[2])
    save_nifti(
        np.arange(np.prod(halved), dtype=np.float32).reshape(halved), coarse, manifest.dataset_dir / "pet.nii.gz"
    )
    items = [{**item, "image": [item["image"], "pet.nii.gz"]} for item in manifest.training]
    assert first == items[0]["image"][0]
    found_codes = {finding.code for finding in audit(manifest.with_content(training=items)).findings}
    assert code in found_codes
    assert len(found_codes & {"channels-on-different-grids", "channel-mismatch"}) == 1


def test_outliers_of_volume_and_of_spacing(manifest: Manifest) -> None:
    label = np.ones(SHAPE, np.uint8)
    save_nifti(label, AFFINE, label_file(manifest, 3))
    wide = np.diag([4.0, 4.0, 4.0, 1.0])
    save_nifti(image_of(5), wide, image_file(manifest, 5))
    save_nifti(label_of(5), wide, label_file(manifest, 5))
    findings = {(finding.code, finding.cases) for finding in audit(manifest).findings}
    assert ("spacing-outlier", ("case_05x",)) in findings
    assert ("label-volume-outlier", ("case_03x",)) in findings


def test_a_dataset_without_a_common_scale_is_one_note(manifest: Manifest) -> None:
    for index in range(0, 12, 2):
        save_nifti(image_of(index).astype(np.float32) * 1000, AFFINE, image_file(manifest, index))
    findings = found(manifest, "checksum-mismatch")
    assert list(findings) == ["no-common-scale"]


def test_errors_come_first_and_the_report_is_json(manifest: Manifest) -> None:
    label_file(manifest).unlink()
    report: AuditReport = audit(manifest.with_content(licence=""))
    assert [finding.severity for finding in report.findings] == ["error", "warning"]
    assert report.as_json()["blocks_training"] is True
    assert report.as_json()["findings"][0]["code"] == "missing-file"


ODD_STEPS = st.floats(1.01, 50).filter(lambda value: abs(value - float(f"{value:.3g}")) > 1e-5 * value)


@given(step=ODD_STEPS, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_step_of_scaled_integers_is_found(step: float, seed: int) -> None:
    stored = np.random.default_rng(seed).integers(0, 300, 5000)
    assert value_step((stored * step).astype(np.float32)) == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("step", [1.0, 0.5, 0.001, 12.0])
def test_a_plain_step_says_nothing(step: float) -> None:
    stored = np.random.default_rng(0).integers(0, 300, 5000)
    assert value_step((stored * step).astype(np.float32)) == 0.0


def test_values_without_a_step_have_none() -> None:
    assert value_step(np.random.default_rng(0).normal(size=5000).astype(np.float32)) == 0.0
    assert value_step(np.zeros(10, np.float32)) == 0.0


def test_content_hash_is_of_values_in_space() -> None:
    geometry = Geometry(SHAPE, AFFINE)
    array = image_of(0)
    moved = np.array(AFFINE[:, [1, 0, 2, 3]])
    same = content_hash(array.transpose(1, 0, 2).astype(np.float64), Geometry((7, 6, 8), moved))
    assert content_hash(array, geometry) == same
    assert content_hash(array[::-1], geometry) != same


def test_mismatch_is_explained_in_voxels_too() -> None:
    text = Geometry(SHAPE, shift(AFFINE, 0.5)).mismatch(Geometry(SHAPE, AFFINE))
    assert "0.5 mm (0.5 voxels)" in text


def test_robust_z_by_hand() -> None:
    values = np.array([8.0, 9, 10, 10, 10, 10, 11, 12, 100])
    scores = robust_z(values)
    assert scores[-1] == pytest.approx(90 / 1.4826)
    assert scores[0] == pytest.approx(-2 / 1.4826)
    assert (robust_z(values[:5]) == 0).all()


def test_the_hippocampus_split_holds_each_scan_together(real_data: Path) -> None:
    """The shipped datalist: sound, complete, and left and right of one scan are never on two sides."""
    root = Path(__file__).parents[2]
    manifest = Manifest.read(
        root / "data_manifests" / "msd_task04_hippocampus.json", dataset_dir=real_data / "msd_hippocampus"
    )
    few = manifest.with_content(training=manifest.training[9:32])
    assert set(found(few)) <= {"no-common-scale", "intensity-outlier"}
    alone = few.with_content(training=[{**item, "patient_id": item["image"]} for item in few.training]).split(5, seed=0)
    assert "suspected-same-scan" in found(alone)


def every_label(manifest: Manifest, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for index in range(len(manifest.training)):
        save_nifti(change(label_of(index)), AFFINE, label_file(manifest, index))


def undeclared(manifest: Manifest) -> Manifest:
    return manifest.with_content(labels={}, training=[{**item, "sha256": {}} for item in manifest.training])


def test_gaps_between_labels_block_training_and_the_way_out_is_told(manifest: Manifest) -> None:
    every_label(manifest, lambda label: np.select([label == 1, label == 2], [7, 200], 0).astype(np.int16))
    bare = undeclared(manifest)
    finding = found(bare)["label-gaps"]
    assert "--map 7=1,200=2" in finding.message
    assert audit(bare).blocks_training
    named = bare.with_content(labels={"7": "block", "200": "dot"})
    assert "label-gaps" in found(named)
    mapped = bare.with_content(labels=manifest.content["labels"], label_mapping={"7": 1, "200": 2})
    assert audit(mapped).findings == []


def test_a_background_that_never_occurs_is_told(manifest: Manifest) -> None:
    every_label(manifest, lambda label: (label + 1).astype(np.uint8))
    bare = undeclared(manifest)
    assert "no voxel is 0" in found(bare)["no-background"].message
    shifted = bare.with_content(labels=manifest.content["labels"], label_mapping={"1": 0, "2": 1, "3": 2})
    assert audit(shifted).findings == []


def test_fractional_labels_are_not_said_to_be_empty(manifest: Manifest) -> None:
    every_label(manifest, lambda label: label.astype(np.float32) * 0.4)
    findings = found(undeclared(manifest))
    assert "the labels are not whole numbers" in findings["fractional-labels"].message
    assert not {"nothing-labelled", "empty-label", "no-background", "label-gaps"} & set(findings)


def test_rounding_noise_in_labels_is_a_note(manifest: Manifest) -> None:
    every_label(manifest, lambda label: label.astype(np.float32) * np.float32(0.99999))
    report = audit(manifest.with_content(training=[{**item, "sha256": {}} for item in manifest.training]))
    assert {finding.code for finding in report.findings} == {"rounded-labels"}
    assert not report.blocks_training


def test_a_fold_that_lacks_a_structure_is_a_warning(manifest: Manifest) -> None:
    dot = {index for index, item in enumerate(manifest.training) if item["fold"] == 1}
    for index in set(range(12)) - dot:
        label = label_of(index)
        save_nifti(np.where(label == 2, 0, label).astype(np.uint8), AFFINE, label_file(manifest, index))
    finding = found(manifest, "checksum-mismatch", "duplicate-label")["fold-without-class"]
    assert finding.severity == "warning"
    assert "training of fold 1 never sees 2 (dot)" in finding.message
    assert "validation of folds 0 and 2 lacks 2 (dot)" in finding.message


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "whole": [1, 2], "dot": 2},
        {"0": "background", "1": "block", "2": "ignore"},
    ],
)
def test_regions_and_ignored_voxels_are_no_fault(manifest: Manifest, labels: dict[str, Any]) -> None:
    assert not {"unexpected-labels", "label-gaps", "label-never-present"} & set(
        found(manifest.with_content(labels=labels))
    )


def test_what_is_not_known_is_told(manifest: Manifest) -> None:
    """Ignored voxels and structures that nobody looked for are told; a label that contradicts its list is an error."""
    table = {"0": "background", "1": "block", "2": "ignore"}
    told = found(manifest.with_content(labels=table))["ignored-voxels"]
    assert (told.severity, "judged by nobody" in told.message) == ("note", True)
    partly = found(changed(manifest, 0, annotated=["dot"]))
    assert len(partly["partly-annotated"].cases) == 1
    assert "'block', which `annotated` does not list" in partly["unlisted-structure"].message
    unknown = found(changed(manifest, 0, annotated=["spleen"]))["unlisted-structure"]
    assert "expected a list of declared structures" in unknown.message
