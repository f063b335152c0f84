"""Datalists and selection rules say which files make one case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.errors import Refusal, UsageError
from medseg.inference.cases import collect, content_key, load, stat_key
from medseg.ingest import SeriesRecord
from tests.inference.volumes import blobs, grid, save
from tests.ingest.synthetic import make_series
from tests.ingest.synthetic import save as save_dicom
from tests.ingest.test_left_out import OBJECTS


def _pair(folder: Path, other: str = "plain") -> Path:
    save(blobs((9, 8, 7), 1), grid("plain"), folder / "a_t1.nii.gz")
    save(blobs((9, 8, 7), 2), grid(other), folder / "a_t2.nii.gz")
    path = folder / "datalist.json"
    path.write_text(json.dumps({"testing": [{"image": ["a_t1.nii.gz", "a_t2.nii.gz"]}]}))
    return path


def test_a_datalist_names_the_channels(tmp_path: Path) -> None:
    (case,) = collect([_pair(tmp_path)], channels=2)
    assert case.case_id == "a_t1"
    loaded = load(case)
    assert loaded.images["image"].shape == (2, 9, 8, 7)
    np.testing.assert_array_equal(loaded.images["image"][1].numpy(), blobs((9, 8, 7), 2))


def test_a_datalist_names_its_cases(tmp_path: Path) -> None:
    path = _pair(tmp_path)
    items = [{"case_id": "patient-7", "image": "a_t1.nii.gz"}, {"image": "a_t2.nii.gz"}]
    path.write_text(json.dumps({"test": items}))
    assert [case.case_id for case in collect([path])] == ["patient-7", "a_t2"]
    for odd in ("../a", "a\\b", "", ".."):
        path.write_text(json.dumps({"test": [{"case_id": odd, "image": "a_t1.nii.gz"}]}))
        with pytest.raises(UsageError, match="cannot name a file"):
            collect([path])


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    (case,) = collect([_pair(tmp_path, "oblique")], channels=2)
    with pytest.raises(Refusal) as refusal:
        load(case)
    assert refusal.value.code == "geometry-mismatch"


def test_the_wrong_number_of_channels_is_refused(tmp_path: Path) -> None:
    _pair(tmp_path)
    for case in collect([tmp_path / "a_t1.nii.gz"], channels=2):
        assert case.refusal is not None
        assert case.refusal.code == "channel-mismatch"


def test_a_missing_file_of_a_datalist_is_one_refused_case(tmp_path: Path) -> None:
    path = _pair(tmp_path)
    (tmp_path / "a_t2.nii.gz").unlink()
    (case,) = collect([path], channels=2)
    assert case.refusal is not None
    assert "does not exist" in case.refusal.message


def test_the_same_file_twice_is_one_case(tmp_path: Path) -> None:
    save(blobs((9, 8, 7)), grid("plain"), tmp_path / "a.nii.gz")
    assert len(collect([tmp_path / "a.nii.gz", tmp_path])) == 1


def test_keys_tell_what_changed(tmp_path: Path) -> None:
    path = save(blobs((9, 8, 7)), grid("plain"), tmp_path / "a.nii.gz")
    (case,) = collect([path])
    stat, content = stat_key(case), content_key(case)
    path.touch()
    assert stat_key(case) != stat
    assert content_key(case) == content
    save(blobs((9, 8, 7), 5), grid("plain"), path)
    assert content_key(case) != content


def test_rules_must_fit_the_channels(tmp_path: Path) -> None:
    from medseg.ingest.selection import parse_rules

    path = save(blobs((9, 8, 7)), grid("plain"), tmp_path / "a.nii.gz")
    rules = parse_rules([{"channel": "t1"}])
    assert [case.case_id for case in collect([path], 1, rules)] == ["a"]
    with pytest.raises(UsageError, match="rules"):
        collect([path], 2, rules)


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS.keys())
def test_an_object_beside_a_series_is_left_out_and_told(tmp_path: Path, make: Callable[[str], Dataset]) -> None:
    save_dicom(make("1.2.3.4.5"), make_series().write(tmp_path) / "object")
    skipped: list[SeriesRecord] = []
    (case,) = collect([tmp_path], skipped=skipped)
    assert case.refusal is None
    assert [record.usable for record in skipped] == [False]
    (tmp_path / "alone").mkdir()
    (tmp_path / "object").rename(tmp_path / "alone" / "object")
    (alone,) = collect([tmp_path / "alone"])
    assert alone.refusal is not None, "what is all there is is refused by name"


def test_a_file_that_was_left_out_beside_the_slices_is_told_with_the_case(tmp_path: Path) -> None:
    folder = make_series().write(tmp_path)
    (folder / "last.dcm").write_bytes(b"")
    (case,) = collect([tmp_path])
    assert "1" in load(case).note
    assert "empty" in load(case).note
