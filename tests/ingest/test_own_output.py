"""What medseg wrote is no input, under whatever name it lies."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medseg.errors import UsageError
from medseg.ingest import is_own_output, save_nifti, scan
from medseg.ingest.left_out import mark
from medseg.ingest.record import SeriesRecord
from medseg.manifests import create

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_CT = "1.2.840.10008.5.1.4.1.1.2"


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), path)
    return path


def _object(path: Path, sop_class: str, manufacturer: str) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), generate_uid()
    dataset.Manufacturer = manufacturer
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_results_are_known_by_their_mark_under_any_name(tmp_path: Path) -> None:
    image = _image(tmp_path / "image.nii.gz")
    save_nifti(np.zeros((2, 3, 4), np.uint8), np.eye(4), tmp_path / "a_seg.nii.gz", description=mark("label-map"))
    shutil.copy(tmp_path / "a_seg.nii.gz", tmp_path / "T1.nii.gz")
    save_nifti(np.zeros((2, 3, 4), np.uint8), np.eye(4), tmp_path / "b.nii", description=mark("doubt-map"))
    assert is_own_output(tmp_path / "T1.nii.gz")
    assert is_own_output(tmp_path / "b.nii")
    assert is_own_output(_object(tmp_path / "IM1", _SEGMENTATION, "medseg"))
    assert not is_own_output(image)
    assert not is_own_output(_object(tmp_path / "IM2", _SEGMENTATION, "another"))
    assert not is_own_output(_object(tmp_path / "IM3", _CT, "medseg"))  # a phantom's image is an input
    assert not is_own_output(tmp_path / "absent.nii.gz")


def test_results_without_a_mark_are_known_by_the_run_beside_them(tmp_path: Path) -> None:
    image, result = _image(tmp_path / "a.nii.gz"), _image(tmp_path / "a_seg.nii.gz")
    run = {"medseg": "0.1.0", "cases": [{"case_id": "a", "outputs": ["a_seg.nii.gz"]}]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert is_own_output(result)
    assert not is_own_output(image)
    (tmp_path / "run.json").write_text(json.dumps({"cases": [{"outputs": ["a_seg.nii.gz"]}], "of": "another program"}))
    assert not is_own_output(result)
    (tmp_path / "run.json").write_text("{")
    assert not is_own_output(result)


def test_a_scan_leaves_results_out_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _image(tmp_path / "a.nii.gz")
    save_nifti(np.zeros((2, 3, 4), np.uint8), np.eye(4), tmp_path / "out" / "x.nii.gz", description=mark("label-map"))
    _object(tmp_path / "out" / "IM1", _SEGMENTATION, "medseg")
    own: list[SeriesRecord] = []
    with caplog.at_level(logging.WARNING, "medseg"):
        records = scan(tmp_path, database=tmp_path.parent / "index.sqlite", own=own)
        again = scan(tmp_path, database=tmp_path.parent / "index.sqlite")
    assert [record.case_id for record in records] == [record.case_id for record in again] == ["a"]
    assert sorted(Path(record.source).name for record in own) == ["IM1", "x.nii.gz"]
    assert {record.reason for record in own} == {"own-output"}
    assert "2 file(s) that medseg wrote as results are left out" in caplog.text


def test_a_manifest_takes_results_for_labels_but_not_for_images(tmp_path: Path) -> None:
    _image(tmp_path / "images" / "a.nii.gz")
    result = tmp_path / "images" / "results" / "a_seg.nii.gz"
    save_nifti(np.zeros((2, 3, 4), np.uint8), np.eye(4), result, description=mark("label-map"))
    made = create(tmp_path / "images", checksums=False)
    assert [item["image"] for _, _, item in made.items()] == ["a.nii.gz"]
    paired = create(tmp_path / "images", tmp_path / "images" / "results", checksums=False)
    assert [item["label"] for _, _, item in paired.items()] == ["results/a_seg.nii.gz"]
    with pytest.raises(UsageError):
        create(tmp_path / "images" / "results", checksums=False)
