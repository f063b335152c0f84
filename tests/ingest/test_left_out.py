"""Files that are no readable slices: told where a slice may be lost, passed over where none can be."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

from medseg.errors import Refusal, UsageError
from medseg.ingest import read_volume, save_nifti, scan
from medseg.ingest.left_out import Leftover, note_on
from medseg.manifests.layout_folders import read_folders
from medseg.transforms import LoadVolumed
from tests.ingest.synthetic import Series, make_series, save, slice_at
from tests.ingest.verdicts import USABLE, pixels_of, some, values_of, verdict, without

APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(400)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _html(path: Path) -> None:
    path.write_text("<html><body>503 Service Unavailable</body></html>")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("../.git/annex/objects/none")


def _gzipped(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def _encrypted(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(600))


def _locked(path: Path) -> None:
    path.chmod(0)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (_empty, "2 empty"),
    "a page of a server": (_html, "2 no DICOM files"),
    "links to nothing": (_dangling, "2 links to nothing"),
    "compressed": (_gzipped, "2 compressed by gzip"),
    "encrypted": (_encrypted, "2 no DICOM files"),
    "locked": (_locked, "2 not readable"),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("ending", [".dcm", "", ".txt"])
def test_slices_that_are_lost_at_the_end_are_told(
    tmp_path: Path, spoil: Callable[[Path], None], says: str, ending: str
) -> None:
    if spoil is _locked and os.geteuid() == 0:
        pytest.skip("nothing is locked for root")
    for path in sorted(make_series().write(tmp_path).iterdir()):
        path = path.rename(path.with_suffix(ending))
        if path.stem[-1] in "67":
            spoil(path)
    found, notes = verdict(tmp_path)
    assert found == USABLE
    assert "2 files left out" in notes
    assert says in notes
    assert "2 files left out" in LoadVolumed(keys="image")({"image": str(tmp_path)})["image"].meta["notes"]
    assert "2 files left out" in str(read_volume(scan(tmp_path)[0])[2]["notes"])


@pytest.mark.parametrize("chosen", ["first", "middle", "last"])
def test_a_slice_cut_to_nothing_is_missing_or_told(tmp_path: Path, chosen: str) -> None:
    files = sorted(make_series().write(tmp_path).iterdir())
    _empty(files[some(8, chosen)[0]])
    found, text = verdict(tmp_path)
    assert found == ("missing-slices" if chosen == "middle" else USABLE)
    assert chosen == "middle" or "1 file left out" in text


def test_notes_and_system_files_need_no_word(tmp_path: Path) -> None:
    make_series().write(tmp_path)
    for name in ("README.txt", "Thumbs.db", "README", "labels.csv", ".DS_Store", "study.json"):
        (tmp_path / name).write_text("nothing of interest")
    found, notes = verdict(tmp_path)
    assert (found, "left out" in notes) == (USABLE, False)


def test_a_folder_of_unreadable_slices_is_refused_with_why(tmp_path: Path) -> None:
    for path in make_series().write(tmp_path).iterdir():
        _gzipped(path)
    (record,) = scan(tmp_path)
    assert (record.reason, len(record.files)) == ("unreadable", 8)
    assert "8 compressed by gzip" in record.message
    with pytest.raises(Refusal, match="8 compressed by gzip"):
        read_volume(tmp_path)


def test_many_series_beside_many_unreadable_files_are_told_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    def counted(leftovers: list[Leftover], files: Sequence[str]) -> tuple[str, ...]:
        looked_at.append(len(leftovers))
        return note_on(leftovers, files)

    monkeypatch.setattr("medseg.ingest.left_out.note_on", counted)
    for number in range(5):

        def own(item: Dataset, at: int, series: int = number) -> None:
            item.SeriesInstanceUID, item.SOPInstanceUID = f"1.2.3.{series}", f"1.2.3.{series}.{at}"

        for path in sorted(make_series(change=own).write(tmp_path / f"{number}").iterdir()):
            path.rename(tmp_path / f"{number}-{path.name}")
    for number in range(7):
        (tmp_path / f"lost-{number}.dcm").write_bytes(b"")
    records = scan(tmp_path)
    usable = [record for record in records if record.usable]
    assert len(usable) == 5
    assert all(any("7 files left out" in note for note in record.notes) for record in usable)
    assert looked_at == [7]


def test_files_left_out_are_told_again_from_the_database(tmp_path: Path) -> None:
    files = sorted(make_series().write(tmp_path / "study").iterdir())
    database = tmp_path / "index.sqlite"
    assert not any("left out" in note for note in scan(tmp_path / "study", database=database)[0].notes)
    _empty(files[7])
    assert any("1 file left out" in note for note in scan(tmp_path / "study", database=database)[0].notes)
    assert any("1 file left out" in note for note in scan(tmp_path / "study", database=database)[0].notes)
    files[7].unlink()
    assert not any("left out" in note for note in scan(tmp_path / "study", database=database)[0].notes)


def test_members_of_archives_that_are_left_out_are_told(tmp_path: Path) -> None:
    files = sorted(make_series().write(tmp_path / "study").iterdir())
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number, path in enumerate(files):
            archive.writestr(f"study/IM{number}", path.read_bytes() if number < 6 else b"")
        archive.writestr("study/readme.txt", "nothing of interest")
    (record,) = scan(tmp_path / "study.zip")
    assert record.usable
    assert "2 files left out (2 empty)" in str(record.notes)


# --- lists --------------------------------------------------------------------------------------------------------


def test_every_file_of_a_list_is_read_or_the_list_is_refused(tmp_path: Path) -> None:
    files = sorted(make_series().write(tmp_path / "a").iterdir())
    make_series().write(tmp_path / "b")
    (tmp_path / "page.dcm").write_text("<html></html>")
    (tmp_path / "x.mgz").write_bytes(gzip.compress(bytes(300)))
    assert read_volume(files[:6])[0].shape[2] == 6
    with pytest.raises(UsageError, match="1 of 7 listed files do not exist"):
        read_volume([*files[:6], tmp_path / "gone.dcm"])
    with pytest.raises(UsageError, match="are folders"):
        read_volume([tmp_path / "a", tmp_path / "b"])
    for extra in ("page.dcm", "x.mgz"):
        with pytest.raises(Refusal, match="1 of 7 listed files are neither"):
            read_volume([*files[:6], tmp_path / extra])


# --- what is no slice ---------------------------------------------------------------------------------------------


def test_appledouble_files_are_nowhere(tmp_path: Path) -> None:
    series = make_series()
    for path in sorted(series.write(tmp_path / "dicom").iterdir()):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    (tmp_path / "nifti").mkdir()
    save_nifti(np.zeros((5, 6, 7), np.int16), np.eye(4), tmp_path / "nifti" / "t1.nii.gz")
    (tmp_path / "nifti" / "._t1.nii.gz").write_bytes(APPLE_DOUBLE)
    assert [record.usable for record in scan(tmp_path)] == [True, True]
    assert read_volume(tmp_path / "nifti")[0].shape == (5, 6, 7)
    assert "left out" not in verdict(tmp_path / "dicom")[1]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir.dcm", "index.dir", "0000"])
def test_a_directory_is_known_by_its_class_whatever_its_name(tmp_path: Path, name: str) -> None:
    series = make_series()
    directory, entry = Dataset(), Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage  # and nowhere else, as in every real one
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    entry.DirectoryRecordType, entry.SeriesInstanceUID = "SERIES", series.slices[0].SeriesInstanceUID
    directory.FileSetID, directory.DirectoryRecordSequence = "FAULTS", DicomSequence([entry])
    directory.save_as(series.write(tmp_path) / name, enforce_file_format=True)
    assert [record.usable for record in scan(tmp_path)] == [True]
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))
    with pytest.raises(Refusal, match="check the folder") as caught:
        read_volume(tmp_path / name)
    assert caught.value.code == "not-an-image"


def _private(series_uid: str) -> Dataset:
    item = slice_at((0, 0, 0), 40)
    item.SOPClassUID, item.SeriesInstanceUID = "1.3.46.670589.11.0.0.12.2", series_uid
    without(item, "PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    return item


def _dose_report(series_uid: str) -> Dataset:
    item = slice_at((0, 0, 0), 41)
    item.SOPClassUID, item.SeriesInstanceUID = SecondaryCaptureImageStorage, series_uid
    item.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    without(item, "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")
    return item


def _of_class(sop_class: str) -> Callable[[str], Dataset]:
    def make(series_uid: str) -> Dataset:
        item = slice_at((0, 0, 0), 42)
        item.SOPClassUID, item.SeriesInstanceUID = sop_class, series_uid
        without(item, "PixelData", "ImagePositionPatient", "ImageOrientationPatient")
        return item

    return make


OBJECTS = {
    "private": _private,
    "dose report as picture": _dose_report,
    "dose report": _of_class("1.2.840.10008.5.1.4.1.1.88.67"),
    "presentation state": _of_class("1.2.840.10008.5.1.4.1.1.11.1"),
    "raw data": _of_class("1.2.840.10008.5.1.4.1.1.66"),
    "document": _of_class("1.2.840.10008.5.1.4.1.1.104.1"),
    "hanging protocol": _of_class("1.2.840.10008.5.1.4.38.1"),
    "radiograph": _of_class("1.2.840.10008.5.1.4.1.1.1.1"),
}


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS.keys())
@pytest.mark.parametrize("same_series", [False, True], ids=["own series", "same series"])
def test_objects_without_a_volume_do_not_hide_the_one_volume(
    tmp_path: Path, make: Callable[[str], Dataset], same_series: bool
) -> None:
    series = make_series()
    uid = series.slices[0].SeriesInstanceUID if same_series else "1.2.3.4.5"
    save(make(uid), series.write(tmp_path) / "object")
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))
    assert [record.shape for record in scan(tmp_path) if record.usable] == [(12, 10, 8)]


@pytest.mark.parametrize("ending", [".img", ".hdr", ".nii", ".nii.gz", ".gz", ".txt", ".nrrd", ".mha", ""])
def test_dicom_is_known_by_its_content_whatever_its_name(tmp_path: Path, ending: str) -> None:
    series = make_series()
    for path in sorted(series.write(tmp_path).iterdir()):
        path.rename(tmp_path / f"{path.stem}{ending}")
    assert verdict(tmp_path)[0] == USABLE
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))


def test_slices_named_as_images_are_one_series_in_a_manifest(tmp_path: Path) -> None:
    for path in sorted(make_series().write(tmp_path / "case").iterdir()):
        path.rename(path.with_suffix(".img"))
    manifest = read_folders(tmp_path / "case", None)
    assert len(list(manifest.items())) == 1


@pytest.mark.parametrize("with_meta", [False, True], ids=["without group 2", "with group 2"])
@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
@pytest.mark.parametrize("first", ["SOPClassUID", "ImageType", "SpecificCharacterSet"])
def test_files_without_preamble_begin_with_any_element(
    tmp_path: Path, with_meta: bool, implicit: bool, first: str
) -> None:
    series = make_series()
    for item in series.slices:
        if implicit:
            item.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        if first == "SOPClassUID":
            without(item, "ImageType")
        if first == "SpecificCharacterSet":
            item.SpecificCharacterSet = "ISO_IR 192"
    for path in Series(series.slices).write(tmp_path).iterdir():
        data = path.read_bytes()[132:]
        meta_length = 12 + int.from_bytes(data[8:12], "little")
        path.write_bytes(data if with_meta else data[meta_length:])
    assert verdict(tmp_path)[0] == USABLE
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))


def test_raw_voxels_that_begin_like_an_element_are_no_dicom(tmp_path: Path) -> None:
    raw = np.zeros(4000, np.int16)
    for first in ([8, 5, 0, 0], [2, 0, 0, 0], [8, 22, 4, 0], [4, 0x1220, 0, 0]):
        raw[:4] = first
        (tmp_path / "voxels.raw").write_bytes(raw.tobytes())
        assert scan(tmp_path) == []
