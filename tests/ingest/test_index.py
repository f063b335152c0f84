"""Scanning trees: what is found, what is read again, what is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.ingest import index as parsing
from medseg.ingest import read_volume, save_nifti, scan
from medseg.ingest.dicom_header import Header
from medseg.ingest.record import SeriesRecord
from medseg.ingest.stacks import Stack, split
from medseg.ingest.walk import walk
from medseg.resources import bounded_map
from tests.ingest.trees import IDENTITIES, ROOT, one_slice, write_series


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two DICOM series mixed in one folder, a NIfTI file deeper down, and junk."""
    root = tmp_path / "studies"
    write_series(root / "a", "1")
    write_series(root / "a", "2", SeriesDescription="Coronal", Modality="MR")
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "b" / "c").mkdir(parents=True)
    save_nifti(np.zeros((5, 6, 7), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]), root / "b" / "c" / "brain.nii.gz")
    (root / "empty").write_bytes(b"")
    return root


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that are read from now on."""
    paths: list[str] = []
    original = parsing._found

    def spy(path: str) -> object:
        paths.append(os.path.basename(path))  # noqa: PTH119
        return original(path)

    monkeypatch.setattr(parsing, "_found", spy)
    return paths


def by_id(records: list[SeriesRecord]) -> dict[str, SeriesRecord]:
    return {record.case_id: record for record in records}


def test_finds_every_volume_of_a_mixed_tree(tree: Path) -> None:
    records = scan(tree)
    assert [record.kind for record in records] == ["dicom", "dicom", "nifti"]
    assert [len(record.files) for record in records] == [6, 6, 1]
    assert [record.shape for record in records] == [(4, 3, 6), (4, 3, 6), (5, 6, 7)]
    assert all(record.usable for record in records)
    assert records[0].spacing_mm == pytest.approx((1.5, 1.5, 2.0))
    assert {record.modality for record in records} == {"CT", "MR", ""}
    assert records[2].case_id == "brain"
    assert all(record.case_id.startswith("series-") for record in records[:2])


def test_paths_come_back_as_they_were_given(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    records = scan("studies/b", database="index.sqlite")
    assert records[0].source == "studies/b/c/brain.nii.gz"
    assert records[0].files == ("studies/b/c/brain.nii.gz",)
    assert scan(tree / "b", database="index.sqlite")[0].files == (str(tree / "b/c/brain.nii.gz"),)


def test_unchanged_files_are_not_opened_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tree.parent / "index.sqlite"
    first = scan(tree, database=database)
    opened = opened_files(monkeypatch)
    assert scan(tree, database=database) == first
    assert opened == []


def test_only_what_changed_is_read_and_judged_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tree.parent / "index.sqlite"
    scan(tree, database=database)
    (tree / "a" / "I1-2").unlink()
    one_slice("2", 6, SeriesDescription="Coronal", Modality="MR").save_as(tree / "a" / "new", enforce_file_format=True)
    opened = opened_files(monkeypatch)
    records = scan(tree, database=database)
    assert opened == ["new"]
    assert [record.reason for record in records] == ["missing-slices", None, None]
    assert [len(record.files) for record in records] == [5, 7, 1]


def test_a_file_with_new_content_is_read_again(tree: Path) -> None:
    database = tree.parent / "index.sqlite"
    scan(tree, database=database)
    changed = tree / "a" / "I1-3"
    one_slice("1", 3, ImagePositionPatient=[0, 0, 7.0]).save_as(changed, enforce_file_format=True)
    os.utime(changed, ns=(1, 1))
    assert scan(tree, database=database)[0].reason == "non-uniform-spacing"


def test_a_folder_that_is_gone_is_forgotten(tree: Path) -> None:
    database = tree.parent / "index.sqlite"
    assert len(scan(tree, database=database)) == 3
    shutil.rmtree(tree / "a")
    assert [record.case_id for record in scan(tree, database=database)] == ["brain"]
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "SELECT key FROM headers JOIN files ON files.id = file JOIN series ON series.id = series"
        )
        assert sorted(key[0] for (key,) in rows) == ["f", "x"]  # the image file, and the empty file beside it


def test_a_scan_of_one_part_sees_that_part_only(tree: Path) -> None:
    """A copy elsewhere in the same database must not lend its files to this scan."""
    database = tree.parent / "index.sqlite"
    shutil.copytree(tree, tree.parent / "backup")
    scan([tree, tree.parent / "backup"], database=database)
    (tree / "a" / "I1-2").unlink()
    records = scan(tree, database=database)
    assert records[0].reason == "missing-slices"
    assert all(file.startswith(str(tree)) for record in records for file in record.files)
    assert len(scan(tree / "b", database=database)) == 1


def test_second_copies_of_slices_are_left_out_and_noted(tree: Path) -> None:
    shutil.copy(tree / "a" / "I1-0", tree / "b" / "copy")
    record = scan(tree)[0]
    assert record.usable
    assert len(record.files) == 6
    assert any("second copies" in note for note in record.notes)


def test_a_series_over_several_folders_is_one_volume(tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path, "1")):
        folder = tmp_path / f"part{number % 2}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    (record,) = scan(tmp_path)
    assert record.shape == (4, 3, 6)


def test_archives_are_read_in_place(tree: Path) -> None:
    archive = tree.parent / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((tree / "a").iterdir()):
            packed.write(path, f"../../outside/{path.name}")
        packed.write(tree / "b" / "c" / "brain.nii.gz", "brain.nii.gz")
    before = sorted(tree.parent.rglob("*"))
    records = by_id(scan(archive))
    assert sorted(tree.parent.rglob("*")) == before
    plain = by_id(scan(tree))
    assert set(records) == set(plain)
    for case, record in records.items():
        assert record.shape == plain[case].shape
        assert record.files[0].startswith(f"{archive}!/")
        ours, geometry, _ = read_volume(record)
        theirs, expected, _ = read_volume(plain[case])
        np.testing.assert_array_equal(ours, theirs)
        assert geometry.displacement_mm(expected) == 0


def test_an_unchanged_archive_is_not_listed_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, database = tree / "study.zip", tree.parent / "index.sqlite"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(tree / "a" / "I1-0", "one")
    first = scan(tree, database=database)
    monkeypatch.setattr("medseg.ingest.walk.members", lambda _: pytest.fail("opened again"))
    assert scan(tree, database=database) == first


def test_a_damaged_archive_is_a_named_refusal(tmp_path: Path) -> None:
    (tmp_path / "study.zip").write_bytes(b"PK\x03\x04 cut short")
    (record,) = scan(tmp_path)
    assert (record.usable, record.reason) == (False, "unreadable")


def test_an_archive_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_MAX_VOLUME_GIB", "0.001")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bomb.nii", bytes(4_000_000))
    (record,) = scan(tmp_path)
    assert record.reason == "too-large"


def test_dicomdir_is_no_volume_but_its_files_are_found(tmp_path: Path) -> None:
    write_series(tmp_path / "DICOM", "1")
    directory = one_slice("9", 0)
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = "1.2.840.10008.1.3.10"
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert [len(record.files) for record in scan(tmp_path)] == [6]


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert [len(record.files) for record in scan(tmp_path)] == [6]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    assert scan(tmp_path) == []


def test_names_that_are_not_text_are_kept(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    one_slice("1", 0).save_as(tmp_path / "plain", enforce_file_format=True)
    os.rename(tmp_path / "plain", folder + b"/\xff0")  # noqa: PTH104
    database = tmp_path / "index.sqlite"
    (record,) = scan(tmp_path, database=database)
    assert os.fsencode(record.files[0]) == folder + b"/\xff0"
    assert scan(tmp_path, database=database) == [record]


def test_image_files_whose_names_are_not_text_are_found(tree: Path) -> None:
    folder = os.fsencode(tree / "b" / "c")
    os.rename(folder + b"/brain.nii.gz", folder + b"/\xff.nii.gz")  # noqa: PTH104
    (record,) = scan(tree / "b")
    assert os.fsencode(record.files[0]) == folder + b"/\xff.nii.gz"


def test_nothing_of_the_patient_is_kept(tree: Path) -> None:
    database = tree.parent / "index.sqlite"
    records = scan(tree, database=database)
    text = database.read_bytes() + repr(records).encode()
    for planted in (*IDENTITIES, ROOT):
        assert planted.encode() not in text
    assert records[0].patient_hash
    assert records[0].patient_hash == records[1].patient_hash


def test_the_order_of_acquisition_is_kept_without_dates(tmp_path: Path) -> None:
    write_series(tmp_path, "1", AcquisitionDate="20200131", AcquisitionTime="120000")
    write_series(tmp_path, "2", AcquisitionDate="20200201", AcquisitionTime="060000")
    first, second = scan(tmp_path)
    assert first.acquired is not None
    assert second.acquired is not None
    assert second.acquired - first.acquired == pytest.approx(0.75)


def test_several_processes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.ingest.index._BATCH_FILES", 5)
    for series in range(10):
        write_series(tmp_path / str(series), str(series + 1))
    seen: list[int] = []
    parallel = scan(tmp_path, workers=2, progress=lambda done, _: seen.append(done))
    assert parallel == scan(tmp_path, workers=1)
    assert [len(record.files) for record in parallel] == [6] * 10
    assert seen[-1] == 60


def test_two_files_of_one_name_get_different_case_ids(tree: Path) -> None:
    shutil.copytree(tree / "b", tree / "d")
    ids = [record.case_id for record in scan(tree) if record.kind == "nifti"]
    assert len(set(ids)) == 2
    assert all(case.startswith("brain-") and len(case) == len("brain-") + 8 for case in ids)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "other.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE meat (weight)")
    with pytest.raises(UsageError, match="something else"):
        scan(tmp_path, database=database)
    (tmp_path / "text").write_text("no database at all, but long enough to be taken for one" * 30)
    with pytest.raises(UsageError, match="cannot use"):
        scan(tmp_path, database=tmp_path / "text")


def test_a_path_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give existing"):
        scan(tmp_path / "missing")


def test_walk_gives_each_folder_once(tree: Path) -> None:
    folders = [folder.path for folder in walk([str(tree), str(tree / "a"), str(tree / "a" / "I1-0")], [])]
    assert len(folders) == len(set(folders)) == 4


def _double(number: int) -> int:
    return 2 * number


def test_bounded_map_draws_tasks_only_as_results_are_taken() -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    results = bounded_map(_double, tasks(), 1)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert len(drawn) == 3


@pytest.mark.parametrize("reader", ["_of_image", "dicom_header_of"])
def test_an_error_that_no_reader_foresaw_costs_one_record(
    tree: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """The record names the file and the class of the error, and not its text, which may quote the header."""
    before = scan(tree)
    sound = getattr(parsing, reader)
    victim = "brain" if reader == "_of_image" else "I1-3"

    def fail(path: str, *arguments: str) -> object:
        if victim in Path(path).name:
            raise IndexError("PatientName Phantom^Secret")
        return sound(path, *arguments)

    monkeypatch.setattr(parsing, reader, fail)
    records = scan(tree)
    (refused,) = (record for record in records if victim in Path(record.source).name)
    assert (refused.usable, refused.reason) == (False, "unreadable")
    assert "IndexError" in refused.message
    assert "Secret" not in refused.message
    others = {record.case_id for record in before} - {"brain"}
    assert others <= {record.case_id for record in records}


def test_a_series_that_cannot_be_judged_costs_one_record(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scan(tree)

    def fail(headers: list[Header]) -> list[Stack]:
        if headers[0].modality == "MR":
            raise ZeroDivisionError
        return split(headers)

    monkeypatch.setattr("medseg.ingest.stacks.split", fail)
    records = scan(tree)
    (refused,) = (record for record in records if record.modality == "MR")
    assert (refused.reason, "ZeroDivisionError" in refused.message) == ("unreadable", True)
    assert [record for record in records if record.modality != "MR"] == [r for r in before if r.modality != "MR"]
