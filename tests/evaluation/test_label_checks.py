"""What is scored is what training, planning and the audit take for labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.evaluation import evaluate_folders
from medseg.ingest import save_nifti


def truth() -> np.ndarray:
    array = np.zeros((6, 5, 4), np.uint8)
    array[1:3] = 1
    array[4] = 2
    return array


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_nifti(array, np.eye(4), path)
    return path


def references(folder: Path, array: np.ndarray, **content: Any) -> Path:
    save(folder / "a.nii.gz", array)
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}], **content}))
    return path


def test_the_references_mapping_counts(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", truth())
    stored = np.select([truth() == 1, truth() == 2], [7, 200], 0).astype(np.int16)
    content = {"labels": {"1": "front", "2": "back"}, "label_mapping": {"7": 1, "200": 2}}
    result = evaluate_folders(tmp_path / "p", references(tmp_path / "r", stored, **content), tmp_path / "out")
    assert [(row.name, row.dice) for row in result.results] == [("front", 1.0), ("back", 1.0)]


def test_rounding_noise_is_scored_as_the_labels_it_means(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", truth() * np.float32(0.99999))
    result = evaluate_folders(tmp_path / "p", references(tmp_path / "r", truth()), tmp_path / "out")
    assert [row.dice for row in result.results] == [1.0, 1.0]


def test_fractional_labels_are_refused_in_the_words_of_the_audit(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", truth() * np.float32(0.5))
    result = evaluate_folders(tmp_path / "p", references(tmp_path / "r", truth()), tmp_path / "out")
    [refused] = result.summary["refused"]
    assert refused["code"] == "unexpected-labels"
    assert "the label a.nii.gz: the labels are not whole numbers" in refused["message"]


def test_regions_of_the_references_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", truth())
    datalist = references(tmp_path / "r", truth(), labels={"background": 0, "whole": [1, 2]})
    with pytest.raises(UsageError, match="the region 'whole'"):
        evaluate_folders(tmp_path / "p", datalist, tmp_path / "out")
