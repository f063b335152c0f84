"""The header walk: what pydicom reads, it reads, and it trusts no length."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from medseg.ingest.dicom_elements import MAX_HEADER_BYTES, read_elements
from medseg.ingest.dicom_header import Header, read_header
from medseg.ingest.pseudonyms import KEY_VARIABLE, pseudonym, uid_hash
from tests.ingest.synthetic import FIRST_MM, enhanced, make_series, save, slice_at


def rich_slice() -> Dataset:
    """A slice with nested sequences, private elements and the attributes that are read."""
    item = slice_at(FIRST_MM, 4)
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "1"
    outer.PurposeOfReferenceCodeSequence = DicomSequence([inner, inner])
    item.ReferencedImageSequence = DicomSequence([outer])
    item["ReferencedImageSequence"].is_undefined_length = True
    block = item.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    item.add_new(0x00290010, "LO", "SOMETHING")
    item.add_new(0x00291010, "OB", bytes(40_000))
    item.EchoTime, item.RescaleSlope, item.RescaleIntercept = 2.46, "1", "-1024"
    item.add_new(0x00189087, "FD", 1000.0)
    return item


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_what_is_read_is_what_pydicom_reads(tmp_path: Path, syntax: Any) -> None:
    item = rich_slice()
    if syntax is not None:
        item.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            item.PixelData = item.pixel_array.byteswap().tobytes()
    path = save(item, tmp_path / "a.dcm")
    header, expected = read_header(path), pydicom.dcmread(path)
    assert header is not None
    assert header.defect is None
    assert (header.rows, header.columns, header.bits_stored) == (expected.Rows, expected.Columns, expected.BitsStored)
    assert header.position == tuple(expected.ImagePositionPatient)
    assert header.orientation == tuple(expected.ImageOrientationPatient)
    assert header.pixel_spacing == tuple(expected.PixelSpacing)
    assert (header.modality, header.description, header.instance_number) == ("CT", "axial", 5)
    assert header.rescale == (1.0, -1024.0)
    assert header.transfer_syntax == expected.file_meta.TransferSyntaxUID
    assert header.pixel_length == len(expected.PixelData)
    assert header.attributes["echo time"] == "2.46"
    assert header.attributes["b-value"] == "1000"
    assert header.attributes["b-value (Siemens)"] == "1000"
    assert header.series_uid_hash == uid_hash(expected.SeriesInstanceUID)


def test_a_file_without_preamble_is_recognised(tmp_path: Path) -> None:
    item = slice_at(FIRST_MM, 4)
    item.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    path = save(item, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[132:])
    header = read_header(path)
    assert header is not None
    assert header.columns == 12


@pytest.mark.parametrize(
    "content", [b"", b"x", b"text" * 100, bytes(4096), b"\x1f\x8b" + bytes(300), b"\x08\0\0\0" + b"x" * 500]
)
def test_other_files_are_not_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    header = read_header(tmp_path / "a")
    assert header is None or header.defect is not None or not header.is_image or not header.pixel_tag


def test_pipes_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_header(tmp_path)


def test_a_header_survives_json(tmp_path: Path) -> None:
    for item in (rich_slice(), enhanced(make_series())):
        header = read_header(save(item, tmp_path / "a.dcm"))
        assert header is not None
        assert Header.from_json(header.to_json()) == header


def test_no_identity_is_kept(tmp_path: Path) -> None:
    item = rich_slice()
    item.PatientName, item.PatientID, item.PatientBirthDate = "Secret^Name", "SECRET-77", "19700101"
    header = read_header(save(item, tmp_path / "a.dcm"))
    assert header is not None
    text = header.to_json()
    for secret in ("Secret", "SECRET", "1970", str(item.SeriesInstanceUID), str(item.SOPInstanceUID)):
        assert secret not in text


def test_pseudonyms_depend_on_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    pseudonym.cache_clear()
    monkeypatch.setenv(KEY_VARIABLE, "one")
    first = pseudonym("4711")
    assert pseudonym("4711") == first
    pseudonym.cache_clear()
    monkeypatch.setenv(KEY_VARIABLE, "other")
    assert pseudonym("4711") != first
    assert pseudonym("") == ""
    pseudonym.cache_clear()


def test_a_lying_length_allocates_nothing(tmp_path: Path) -> None:
    path = save(slice_at(FIRST_MM, 0), tmp_path / "a.dcm")
    raw = path.read_bytes()
    lie = b"\x09\x00\x10\x10OB\x00\x00\xf0\xff\xff\x7f"  # 2 GiB of a private element
    place = raw.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(raw[:place] + lie + raw[place:])
    found = read_elements(path, frozenset())
    assert found is not None
    assert found.truncated
    assert len(found.header) <= MAX_HEADER_BYTES


def test_deep_nesting_is_refused_not_followed(tmp_path: Path) -> None:
    path = save(slice_at(FIRST_MM, 0), tmp_path / "a.dcm")
    raw = path.read_bytes()
    nest = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    place = raw.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(raw[:place] + nest + raw[place:])
    header = read_header(path)
    assert header is not None
    assert header.defect == "unreadable"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_found_defective(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        path.write_bytes(_mutated(data))
        header = read_header(path)
    assert header is None or isinstance(header, Header)


_RAW: dict[str, bytes] = {}


def _mutated(data: st.DataObject) -> bytes:
    if not _RAW:
        with tempfile.TemporaryDirectory() as folder:
            _RAW["classic"] = save(rich_slice(), Path(folder) / "a.dcm").read_bytes()
            _RAW["enhanced"] = save(enhanced(make_series()), Path(folder) / "a.dcm").read_bytes()
    raw = bytearray(_RAW[data.draw(st.sampled_from(["classic", "enhanced"]))])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 4000) - 1))] = data.draw(st.integers(0, 255))
    return bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
