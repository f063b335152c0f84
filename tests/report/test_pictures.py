from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.report import write_report
from medseg.report.collect import Case, collect
from medseg.report.pictures import SIDE_PX, CaseVolumes, planes, read_case, worst_slice
from tests.report.report_folders import Folders, read_nifti


def test_a_reference_stored_with_other_axes_is_drawn(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[1:4, 2:5, 3:6] = 1
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "p.nii.gz")
    turned = nib.as_closest_canonical(nib.load(tmp_path / "p.nii.gz")).as_reoriented(
        np.array([[2.0, -1.0], [0.0, 1.0], [1.0, -1.0]])
    )
    nib.save(turned, tmp_path / "r.nii.gz")
    volumes = read_case(Case("a", prediction=tmp_path / "p.nii.gz", reference=tmp_path / "r.nii.gz"))
    assert volumes is not None
    assert volumes.reference is not None
    assert np.array_equal(volumes.reference, volumes.prediction)


def _volumes(prediction: np.ndarray, **others: Any) -> CaseVolumes:
    return CaseVolumes(prediction, np.eye(4), None, others.pop("reference", None), (), **others)


def test_worst_slice_prefers_disagreement_to_doubt_and_doubt_to_area() -> None:
    prediction = np.zeros((4, 5, 6), np.uint16)
    prediction[1:3, 1:4, 1] = 1
    assert worst_slice(_volumes(prediction), 2) == 1
    assert worst_slice(_volumes(prediction, look_at=(0, 3, 2)), 2) == 2
    doubt = np.zeros((4, 5, 6), np.float32)
    doubt[0, 0, 5] = 40
    doubted = _volumes(prediction, look_at=(0, 3, 2), doubt=doubt)
    assert [worst_slice(doubted, axis) for axis in range(3)] == [0, 0, 5]
    reference = prediction.copy()
    reference[0, 0, 4] = 2
    assert worst_slice(_volumes(prediction, reference=reference, doubt=doubt), 2) == 4
    assert worst_slice(_volumes(np.zeros((4, 5, 6), np.uint16)), 2) == 3


def test_pictures_without_reference_show_the_planes_of_greatest_doubt(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((folders.results / "run.json").read_text())
    shutil.copy(folders.results / "case_00_seg.nii.gz", tmp_path)
    case = next(case for case in collect(tmp_path).cases if case.case_id == "case_00")
    volumes = read_case(case, read_nifti)
    assert volumes is not None
    # the point (0, 0, 0) mm of a grid with origin (-20, -30, -25) mm and spacing (1, 1.2, 1.5) mm
    assert volumes.look_at == (20, 25, 17)
    assert [plane.slice_number for plane in planes(volumes)] == [18, 26, 21]
    assert "slice of greatest doubt" in write_report(tmp_path, viewer="never", reader=read_nifti).read_text()


def test_contours_lie_where_the_voxels_are() -> None:
    """A box at the patient's right, front and top must be drawn at the left, left and top of the pictures."""
    labels = np.zeros((40, 40, 40), np.uint16)
    labels[30:40, 30:40, 30:40] = 1
    drawn = {p.name: p for p in planes(CaseVolumes(labels, np.diag([4.0, 4.0, 4.0, 1.0]), None, None, ()))}
    for plane in drawn.values():
        points = np.array([[float(v) for v in pair.split(",")] for pair in plane.prediction[1].strip("MZ").split()])
        low, high = points.min(axis=0), points.max(axis=0)
        assert np.allclose(low, 0.0, atol=0.1)
        assert np.allclose(high - low, SIDE_PX / 1.7, atol=0.2)


def test_contour_of_a_hole_has_two_rings() -> None:
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[4:16, 4:16, 4:16] = 1
    labels[8:12, 8:12, 8:12] = 0
    for plane in planes(CaseVolumes(labels, np.eye(4), None, None, ())):
        assert plane.prediction[1].count("M") in (1, 2)
    labels[8:12, 8:12, :] = 0
    axial = planes(CaseVolumes(labels, np.eye(4), None, None, ()))[0]
    assert axial.prediction[1].count("M") == 2
