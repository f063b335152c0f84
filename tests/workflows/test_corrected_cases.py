"""Corrected cases for trust: the same grid, the same result, the right Dice, and nothing of other weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medseg.bundle import Bundle
from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry, lps_to_ras
from medseg.inference import Options, Predictor, run_batch
from medseg.planning import Cleaning, set_cleaning
from medseg.trust.fit_cases import CaseCache, TrustCase
from medseg.workflows.corrected_cases import CorrectedCases, TrainingCases
from tests.inference.bundles import ORIENTED, RESAMPLED, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, save
from tests.labels.objects import Series, segmentation
from tests.labels.objects import save as write_object


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases through the thresholding bundle: ``bundle``, ``images``, ``out`` and corrected ``masks``."""
    root = tmp_path_factory.mktemp("corrected")
    bundle = write_bundle(root / "bundle", Design(transforms=ORIENTED))
    for number, kind in enumerate(("plain", "permuted", "oblique")):
        intensity = blobs((22, 18, 14 + number), number)
        save(intensity, grid(kind), root / "images" / f"case{number}.nii.gz")
        corrected = (intensity > 14).astype(np.uint8) + (intensity > 28)
        save(corrected.astype(np.float32), grid(kind), root / "masks" / f"case{number}_seg.nii.gz")
    run_batch(bundle, [root / "images"], root / "out", Options(windows="bundle"))
    return root


def _cases(root: Path, **changes: Any) -> CorrectedCases:
    places = {"folder": root / "out", "references": root / "masks"} | changes
    return CorrectedCases(Predictor(root / "bundle", "cpu", "fp32"), **places)


def _own(cases: CorrectedCases) -> list[TrustCase]:
    """The network's own results."""
    return [case for case in cases if case.fault is None]


def test_dice_is_that_between_the_folder_and_the_corrected_mask(ran: Path) -> None:
    cases = _cases(ran)
    assert cases.case_ids == ("case0", "case1", "case2")
    for case_id, case in zip(cases.case_ids, _own(cases), strict=True):
        found, _ = load(ran / "out" / f"{case_id}_seg.nii.gz")
        corrected, _ = load(ran / "masks" / f"{case_id}_seg.nii.gz")
        for label in (1, 2):
            ours, theirs = found == label, corrected == label
            expected = 2 * np.sum(ours & theirs) / (ours.sum() + theirs.sum())
            assert 0.2 < expected < 1.0
            assert case.dice(label) == pytest.approx(expected, abs=1e-3)
        assert case.crop.image.shape[1:] == case.reference.shape
        assert case.patient == case_id
        assert sorted(case.crop.spacing_mm) == pytest.approx([1.1, 1.4, 2.6], abs=1e-5)
    assert not cases.skipped


def test_where_labels_are_cleaned_dice_is_that_of_what_is_written(ran: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="MONAI's cleaning needs scikit-image")
    shutil.copytree(ran / "bundle", tmp_path / "bundle")
    set_cleaning(Bundle.open(tmp_path / "bundle"), Cleaning(smallest_ml=1e5))  # nothing is as large
    run_batch(tmp_path / "bundle", [ran / "images" / "case1.nii.gz"], tmp_path / "out", Options(windows="bundle"))
    assert not load(tmp_path / "out" / "case1_seg.nii.gz")[0].any()
    results = list(CorrectedCases(Predictor(tmp_path / "bundle", "cpu", "fp32"), tmp_path / "out", ran / "masks"))
    own, moved = results[0], next(case for case in results if case.fault is not None)
    assert (own.dice(1), own.dice(2)) == (0.0, 0.0)
    assert (replace(own, measured=None).dice(1) or 0.0) > 0.8, "what the network says is what it was"
    assert moved.measured is None, "a fault that was put into the labels is judged as it is"


def test_corrected_masks_may_be_segmentations(ran: Path, tmp_path: Path) -> None:
    """As a viewer exports them: on the image's grid, known by name where the image was no DICOM series."""
    names = Predictor(ran / "bundle", "cpu", "fp32").bundle.labels
    for case_id in ("case0", "case1", "case2"):
        mask, matrix = load(ran / "masks" / f"{case_id}_seg.nii.gz")
        geometry = Geometry(mask.shape, matrix)
        first = Dataset()
        first.SeriesInstanceUID, first.FrameOfReferenceUID = generate_uid(), generate_uid()
        first.StudyInstanceUID, first.PatientID, first.PatientName = generate_uid(), "P", "P"
        of = Series(tmp_path, geometry, lps_to_ras(geometry.affine), first)
        structures = {name: np.asarray(mask == value) for value, name in names.items()}
        write_object(segmentation(of, structures), tmp_path / f"{case_id}_seg.dcm")
    cases, usual = _cases(ran, references=tmp_path), _cases(ran)
    assert cases.case_ids == ("case0", "case1", "case2")
    for found, expected in zip(_own(cases), _own(usual), strict=True):
        np.testing.assert_array_equal(found.reference, expected.reference)
    assert not cases.skipped


def test_a_resampled_grid_gives_nearly_the_same_dice(ran: Path, tmp_path: Path) -> None:
    root = tmp_path
    bundle = write_bundle(root / "bundle", Design(transforms=RESAMPLED))
    shutil.copytree(ran / "images", root / "images")
    shutil.copytree(ran / "masks", root / "masks")
    run_batch(bundle, [root / "images"], root / "out", Options(windows="bundle"))
    for case_id, case in zip(("case0", "case1", "case2"), _own(_cases(root)), strict=True):
        found, _ = load(root / "out" / f"{case_id}_seg.nii.gz")
        corrected, _ = load(root / "masks" / f"{case_id}_seg.nii.gz")
        expected = 2 * np.sum((found == 1) & (corrected == 1)) / (np.sum(found == 1) + np.sum(corrected == 1))
        assert case.dice(1) == pytest.approx(expected, abs=0.05)


def test_what_the_network_missed_counts(ran: Path, tmp_path: Path) -> None:
    """A structure far from everything that was found lowers the Dice, though only a box is judged."""
    root = tmp_path
    shutil.copytree(ran / "bundle", root / "bundle")
    shape = (20, 20, 90)
    image = np.zeros(shape, np.float32)
    image[8:12, 8:12, 5:10] = 20
    save(image, grid("plain"), root / "images" / "far.nii.gz")
    corrected = (image > 10).astype(np.float32)
    corrected[8:12, 8:12, 80:85] = 1
    save(corrected, grid("plain"), root / "masks" / "far.nii.gz")
    run_batch(root / "bundle", [root / "images"], root / "out", Options(windows="bundle"))
    (case,) = _own(_cases(root))
    assert case.dice(1) == pytest.approx(2 * 80 / (80 + 160))


def test_cases_that_cannot_be_used_are_named(ran: Path, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(ran, root)
    other, affine = load(root / "masks" / "case0_seg.nii.gz")
    save((other * 7).astype(np.float32), affine, root / "masks" / "case0_seg.nii.gz")
    save(other[1:].astype(np.float32), affine, root / "masks" / "case1_seg.nii.gz")
    found, affine = load(root / "out" / "case2_seg.nii.gz")
    found[:11] = 0
    save(found.astype(np.float32), affine, root / "out" / "case2_seg.nii.gz")
    cases = _cases(root)
    assert not list(cases)
    told = {skipped.case_id: skipped.message for skipped in cases.skipped}
    assert "the labels hold 7 in" in told["case0"]
    assert "another grid" in told["case1"]
    assert "does not give the label map in the folder again" in told["case2"]


def test_moved_images_are_named_and_gone_ones_told(ran: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(ran, root)
    run = json.loads((root / "out" / "run.json").read_text())
    for case in run["cases"]:
        case["source"] = str(root / "elsewhere" / Path(case["source"]).name)
    (root / "out" / "run.json").write_text(json.dumps(run))
    with pytest.raises(UsageError, match="--images"):
        _cases(root)
    assert len(_own(_cases(root, images=[root / "images"]))) == 3


def test_nothing_in_common_is_told(ran: Path, tmp_path: Path) -> None:
    save(np.zeros((4, 4, 4), np.float32), grid("plain"), tmp_path / "masks" / "other.nii.gz")
    with pytest.raises(UsageError, match="none of the 3 cases"):
        _cases(ran, references=tmp_path / "masks")
    with pytest.raises(UsageError, match="medseg infer"):
        _cases(ran, folder=tmp_path)


def test_the_region_of_interest_of_the_run_is_used_again(ran: Path, tmp_path: Path) -> None:
    options = Options(windows="bundle", roi="voxels:2,2,2,15,14,11")
    run_batch(ran / "bundle", [ran / "images" / "case0.nii.gz"], tmp_path / "out", options)
    (case,) = _own(_cases(ran, folder=tmp_path / "out"))
    assert case.reference.shape == (14, 13, 10)


def test_cases_with_faults_follow_their_own_and_are_not_better(ran: Path) -> None:
    cases = _cases(ran)
    found = list(cases)
    assert len(found) == 3 * 6
    assert [case.fault for case in found[::6]] == [None] * 3
    assert {case.patient for case in found[:6]} == {"case0"}
    assert None not in {case.fault for case in found[1:6]}
    for begin in (0, 6, 12):
        own = found[begin].dice(1)
        others = [case.dice(1) or 0.0 for case in found[begin + 1 : begin + 6]]
        assert own is not None
        assert np.mean(others) < own
    for case in found:
        total = case.crop.probabilities.sum(0)
        torch.testing.assert_close(total, torch.ones(case.reference.shape), atol=1e-4, rtol=0)
    again = list(cases)
    assert torch.equal(again[3].crop.probabilities, found[3].crop.probabilities)


def test_a_corrected_mask_in_another_orientation_is_turned(ran: Path, tmp_path: Path) -> None:
    for number in range(3):
        labels, affine = load(ran / "masks" / f"case{number}_seg.nii.gz")
        turned = nib.Nifti1Image(labels.astype(np.float32), affine).as_reoriented([[2, -1], [0, 1], [1, -1]])
        nib.save(turned, tmp_path / f"case{number}_seg.nii.gz")
    cases = _cases(ran, references=tmp_path)
    for straight, turned in zip(_own(_cases(ran)), _own(cases), strict=True):
        np.testing.assert_array_equal(straight.reference, turned.reference)
        assert straight.dice(1) == turned.dice(1)
    assert not cases.skipped


def test_the_cache_gives_back_what_was_put_in(ran: Path) -> None:
    cases = list(_cases(ran))[::5]
    with CaseCache() as cache:
        for case in cases:
            cache.append(case)
        folder = Path(cache._folder.name)
        assert len(cache) == len(cases)
        for case, back in zip(cases, cache, strict=True):
            assert torch.equal(case.crop.image, back.crop.image)
            torch.testing.assert_close(case.crop.probabilities, back.crop.probabilities, atol=1e-3, rtol=1e-3)
            np.testing.assert_array_equal(case.reference, back.reference)
            assert (case.patient, case.crop.spacing_mm, case.fault) == (back.patient, back.crop.spacing_mm, back.fault)
            assert (case.crop.start, case.dice(1)) == (back.crop.start, back.dice(1))
        with pytest.raises(IndexError):
            cache[len(cases)]
    assert not folder.exists()


def test_labels_of_training_cases_lie_on_the_grid_of_their_image(ran: Path, tmp_path: Path) -> None:
    image, straight = ran / "images" / "case0.nii.gz", ran / "masks" / "case0_seg.nii.gz"
    labels, affine = load(straight)
    plain = nib.Nifti1Image(labels.astype(np.float32), affine)
    nib.save(plain.as_reoriented([[1, 1], [0, -1], [2, 1]]), tmp_path / "turned.nii.gz")
    moved = affine.copy()
    moved[:3, 3] += 5
    save(labels.astype(np.float32), moved, tmp_path / "moved.nii.gz")
    files = {"a": straight, "b": tmp_path / "turned.nii.gz", "c": tmp_path / "moved.nii.gz"}
    items = []
    for case_id, label in files.items():
        items.append({"image": str(shutil.copy(image, tmp_path / f"{case_id}.nii.gz")), "label": str(label)})
    names = {"0": "background", "1": "small", "2": "large"}
    (tmp_path / "datalist.json").write_text(json.dumps({"labels": names, "training": items}))
    cases = TrainingCases(Predictor(ran / "bundle", "cpu", "fp32"), tmp_path / "datalist.json")
    assert len(cases) == 3
    np.testing.assert_array_equal(cases[0].reference, cases[1].reference)
    with pytest.raises(Refusal, match=r"moved\.nii\.gz, on another grid"):
        cases[2]
