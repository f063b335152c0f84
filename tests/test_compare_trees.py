"""What the comparison of two trees takes for equal, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from benchmarks.compare_trees import parse
from benchmarks.golden_files import Difference, Side, allowed, compare_folders


def _compare(folder: Path) -> list[Difference]:
    old, new = (Side(folder / name, ((str(folder / name), "<results>"),)) for name in ("old", "new"))
    return compare_folders(old, new).differences


def _write(folder: Path, number: int, **changed: Any) -> None:
    """A run's folder; what changes from run to run depends on ``number``, results on ``changed`` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1] = changed.get("label", 1)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "a_seg.nii.gz")
    torch.save({"weight": torch.tensor([changed.get("weight", 1.0)], dtype=torch.bfloat16)}, folder / "model.pt")
    run = {"started": f"2026-01-0{number}", "seconds": number, "source": str(folder / "a"), "dice": changed.get("dice")}
    (folder / "run.json").write_text(json.dumps({**run, "class": f"medseg.place{number}.Name"}))
    (folder / "results.csv").write_text(f"case_id,seconds,dice\na,{number},{changed.get('dice', 0.5)}\n")
    (folder / "said.txt").write_text(f"done in {number}.5 s, {changed.get('verdict', 'accept')}\n")
    (folder / ".journal.sqlite").write_text(str(number))
    _write_object(folder / "a_sr.dcm", number, changed.get("text", "found"))


def _write_object(path: Path, number: int, text: str) -> None:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.StudyDate, data.ContentDate = "20200101", f"2026010{number}"
    data.TextValue = text
    data.save_as(path, enforce_file_format=True)


def test_what_changes_from_run_to_run_is_no_difference(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new"), 1):
        _write(tmp_path / name, number)
    assert _compare(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "files"),
    [
        ({"label": 2}, {"a_seg.nii.gz"}),
        ({"weight": 1.0078125}, {"model.pt"}),
        ({"dice": 0.6}, {"run.json", "results.csv"}),
        ({"verdict": "review"}, {"said.txt"}),
        ({"text": "missed"}, {"a_sr.dcm"}),
    ],
)
def test_a_changed_result_is_told_with_its_file(tmp_path: Path, changed: dict[str, Any], files: set[str]) -> None:
    _write(tmp_path / "old", 1)
    _write(tmp_path / "new", 2, **changed)
    assert {difference.file for difference in _compare(tmp_path)} == files


def test_a_missing_file_is_told_and_an_announced_difference_is_known(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new"), 1):
        _write(tmp_path / name, number)
    (tmp_path / "new" / "a_sr.dcm").unlink()
    (difference,) = _compare(tmp_path)
    assert (difference.old, difference.new) == ("there", "missing")
    assert allowed(difference, [r"_sr\.dcm"])
    assert not allowed(difference, ["run.json"])


def test_a_folder_that_is_no_tree_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([str(tmp_path), str(Path(__file__).parents[1])])
    assert "holds no medseg" in capsys.readouterr().err
