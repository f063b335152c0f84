"""MetaImage and NRRD by hand-written headers: what a field says is applied or refused, and notes are no fields."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from medseg.errors import Refusal
from medseg.ingest import inspect_image, read_volume

SHAPE = (4, 3, 2)
STORED = np.arange(24, dtype="<i2").reshape(SHAPE, order="F") - 5
SPACING = (0.5, 1.0, 2.0)
ORIGIN = (10.0, -20.0, 30.0)
AFFINE = np.diag([-1, -1, 1, 1.0]) @ np.array([[0.5, 0, 0, 10], [0, 1, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
RAW = STORED.tobytes(order="F")
TEXT = " ".join(map(str, STORED.ravel(order="F"))).encode()

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 3 2",
    "space directions": "(0.5,0,0) (0,1,0) (0,0,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,30)",
}
MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 -20 30",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "0.5 1 2",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
}


def nrrd(folder: Path, data: bytes = RAW, lines: str = "", **fields: str | None) -> Path:
    """A file with fields changed (``_`` for a blank), left out (``None``), and lines added."""
    merged = {**NRRD, **{name.replace("_", " "): value for name, value in fields.items()}}
    head = "".join(f"{name}: {value}\n" for name, value in merged.items() if value is not None)
    path = folder / "v.nrrd"
    path.write_bytes(b"NRRD0004\n" + head.encode() + lines.encode() + b"\n" + data)
    return path


def mha(folder: Path, data: bytes = RAW, last: str = "ElementDataFile = LOCAL\n", **fields: str | None) -> Path:
    merged = {**MHA, **fields}
    head = "".join(f"{name} = {value}\n" for name, value in merged.items() if value is not None)
    path = folder / "v.mha"
    path.write_bytes(head.encode() + last.encode() + data)
    return path


def check(path: Path, mm: float | tuple[float, float, float] = 1.0, note: str = "") -> None:
    """The voxels as stored, the grid times ``mm`` along the axes of space, and the same in the record."""
    values, geometry, facts = read_volume(path)
    np.testing.assert_array_equal(values, STORED)
    expected = np.diag([*np.broadcast_to(mm, 3), 1.0]) @ AFFINE
    np.testing.assert_allclose(geometry.affine, expected, atol=1e-12)
    record = inspect_image(path)
    assert record.usable
    assert record.notes == facts["notes"]
    assert note in " ".join(record.notes)
    assert bool(note) == bool(record.notes)


def refused(path: Path, code: str, *words: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_volume(path)
    record = inspect_image(path)
    assert (caught.value.code, record.reason) == (code, code)
    assert all(word in record.message for word in words), record.message


# --- units ----------------------------------------------------------------------------------------------------------

UNITS = [
    ("mm", 1.0), ("MM", 1.0), ("millimeters", 1.0), ("Millimetre", 1.0), ("um", 1e-3), ("µm", 1e-3), ("μm", 1e-3),
    ("micron", 1e-3), ("microns", 1e-3), ("micrometers", 1e-3), ("cm", 10.0), ("centimetres", 10.0), ("m", 1e3),
    ("meters", 1e3), ("in", 25.4), ("inches", 25.4),
]  # fmt: skip


@pytest.mark.parametrize(("unit", "mm"), UNITS)
def test_units_of_nrrd_are_converted(tmp_path: Path, unit: str, mm: float) -> None:
    note = "" if mm == 1 else "converted to mm"
    check(nrrd(tmp_path, space_units=f'"{unit}" "{unit}" "{unit}"'), mm, note)
    check(nrrd(tmp_path, space_units=f"{unit} {unit}  {unit}"), mm, note)


@pytest.mark.parametrize(("unit", "mm"), UNITS)
def test_units_of_metaimage_are_converted(tmp_path: Path, unit: str, mm: float) -> None:
    check(mha(tmp_path, DistanceUnits=unit), mm, "" if mm == 1 else "converted to mm")
    check(mha(tmp_path, DistanceUnits=None, distanceunits=f'"{unit}"'), mm, "" if mm == 1 else "converted to mm")


def test_units_belong_to_the_axes_of_space(tmp_path: Path) -> None:
    check(nrrd(tmp_path, space_units='"mm" "cm" "um"'), (1.0, 10.0, 1e-3), "mm, cm, um, converted")


@pytest.mark.parametrize("units", ['"" "" ""', "? ? ?", '"unknown" "unknown" "unknown"'])
def test_an_undeclared_unit_is_millimetres_with_a_note(tmp_path: Path, units: str) -> None:
    check(nrrd(tmp_path, space_units=units), note="taken as mm")


def test_an_undeclared_unit_of_metaimage_is_millimetres_with_a_note(tmp_path: Path) -> None:
    check(mha(tmp_path, DistanceUnits="?"), note="taken as mm")


@pytest.mark.parametrize("units", ['"pixel" "pixel" "pixel"', '"mm" "mm" ""', '"mm" "mm"', '"mm" "mm" "s"', "mm"])
def test_units_that_are_no_lengths_are_refused(tmp_path: Path, units: str) -> None:
    refused(nrrd(tmp_path, space_units=units), "no-geometry", "space units")


def test_units_of_metaimage_that_are_no_lengths_are_refused(tmp_path: Path) -> None:
    refused(mha(tmp_path, DistanceUnits="parsec"), "no-geometry", "DistanceUnits", "parsec")


def test_a_unit_that_makes_the_volume_larger_than_any_scanner_is_refused(tmp_path: Path) -> None:
    refused(nrrd(tmp_path, space_units='"m" "m" "m"', space_directions="(9,0,0) (0,9,0) (0,0,9)"), "no-geometry")


# --- pairs, cases, contradictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        "space:=RAS",
        "space :=RAS",
        "space origin:=(0,0,0)",
        "space directions:=(9,0,0) (0,9,0) (0,0,9)",
        "space units:=um um um",
        "sizes:=2 3 4",
        "type:=float",
        "encoding:=gzip",
        "endian:=big",
        "byte skip:=8",
        "data file:=other.raw",
        "old min:=0",
        "kinds:=list list list",
        "note:=a\x0bspace: RAS",
        "note:=a\u2028space: RAS",
    ],
)
def test_pairs_of_nrrd_are_notes_and_never_fields(tmp_path: Path, pair: str) -> None:
    check(nrrd(tmp_path, lines=f"{pair}\n# space: RAS\n"))


def test_fields_of_nrrd_in_other_letters_and_blanks_are_the_same(tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "space": None,
        "space units": None,
        "Space": "LPS",
        "spaceUnits": '"um" "um" "um"',
        "SIZES": " 4  3 2 ",
    }
    check(nrrd(tmp_path, **{**odd, "sizes": None}), 1e-3, "converted to mm")


@pytest.mark.parametrize("name", ["space: RAS", "sizes: 3 4 2", "type: ushort", "space origin: (0,0,0)"])
def test_a_field_given_twice_in_different_words_is_refused(tmp_path: Path, name: str) -> None:
    refused(nrrd(tmp_path, lines=f"{name}\n"), "unreadable", name.partition(":")[0])
    check(nrrd(tmp_path, lines="space origin: (10,-20,30)\n"))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"ElementByteOrderMSB": "True"}, "unreadable"),
        ({"Position": "0 0 0"}, "unreadable"),
        ({"Orientation": "-1 0 0 0 -1 0 0 0 1"}, "unreadable"),
        ({"NDims": "2"}, "unreadable"),
        ({"ElementSpacing": "0.5 -1 2"}, "no-geometry"),
        ({"ElementSpacing": "0,5 1,0 2,0"}, "no-geometry"),
        ({"CompressedData": "maybe"}, "unreadable"),
        ({"ElementNumberOfChannels": "two"}, "unreadable"),
        ({"ElementNumberOfChannels": "3"}, "colour"),
        ({"ElementToIntensityFunctionSlope": "0"}, "undecodable"),
        ({"ElementToIntensityFunctionOffset": "-1024,5"}, "undecodable"),
        ({"HeaderSize": "7"}, "unreadable"),
        ({"HeaderSize": "9" * 30}, "unreadable"),
    ],
)
def test_a_metaimage_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    refused(mha(tmp_path, **fields), code)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"kinds": "domain domain list"}, "not-3d"),
        ({"kinds": "domain domain"}, "not-3d"),
        ({"dimension": "4"}, "unreadable"),
        ({"space_directions": "none (0.5,0,0) (0,1,0) (0,0,2)"}, "no-geometry"),
        ({"space_directions": "none (0,1,0) (0,0,2)"}, "no-geometry"),
        ({"space_origin": "none"}, "no-geometry"),
        ({"spacings": "1 1 1"}, "no-geometry"),
        ({"units": '"cm" "cm" "cm"'}, "no-geometry"),
        ({"endian": None}, "unreadable"),
        ({"encoding": "zstd"}, "undecodable"),
        ({"old_min": "-1024", "old_max": "3071"}, "undecodable"),
        ({"byte_skip": "-2"}, "unreadable"),
        ({"line_skip": "9" * 30}, "unreadable"),
        ({"byte_skip": "9" * 30}, "truncated"),
        ({"data_file": "LIST"}, "unreadable"),
        ({"datafile": "slices%03d.raw 1 2 1"}, "unreadable"),
    ],
)
def test_an_nrrd_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    refused(nrrd(tmp_path, **fields), code)


def test_what_does_not_change_the_place_of_voxels_is_passed_over(tmp_path: Path) -> None:
    harmless: dict[str, Any] = {
        "centerings": "node node node",
        "measurement frame": "(0,1,0) (1,0,0) (0,0,1)",
        "sample units": '"um"',
    }
    check(nrrd(tmp_path, **harmless, spacings="nan nan nan", units='"mm" "" "???"'))


def test_letters_that_contradict_the_matrix_are_noted(tmp_path: Path) -> None:
    check(mha(tmp_path, AnatomicalOrientation="LPS"), note="contradicts TransformMatrix")
    check(mha(tmp_path, AnatomicalOrientation="???"))


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
def test_what_itk_writes_has_no_contradiction(tmp_path: Path, flip: tuple[int, int, int]) -> None:
    image = SimpleITK.GetImageFromArray(STORED.transpose(2, 1, 0))
    image.SetDirection(np.diag(flip)[:, [1, 2, 0]].astype(float).ravel().tolist())
    for name in ("v.mha", "v.nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        assert inspect_image(tmp_path / name).notes == ()


# --- where the values are, and what they mean -----------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [("2", "-1024"), ("0.5", "0"), ("1", "-1000")])
def test_the_intensity_function_of_metaimage_is_applied(tmp_path: Path, scaling: tuple[str, str]) -> None:
    slope, offset = scaling
    path = mha(tmp_path, ElementToIntensityFunctionSlope=slope, ElementToIntensityFunctionOffset=offset)
    values, _, facts = read_volume(path)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, STORED * float(slope) + float(offset))
    assert "intensity function" in facts["notes"][0]
    check(mha(tmp_path, ElementToIntensityFunctionSlope="1", ElementToIntensityFunctionOffset="0"))


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(RAW, mtime=0)),
        ("gz", gzip.compress(RAW[:20], mtime=0) + gzip.compress(RAW[20:], mtime=0)),
        ("bzip2", bz2.compress(RAW)),
        ("bz2", bz2.compress(RAW[:7]) + bz2.compress(RAW[7:])),
        ("hex", RAW.hex(" ").encode()),
        ("HEX", RAW.hex().upper().encode() + b"\n"),
        ("ascii", TEXT.replace(b" ", b"\n")),
        ("txt", TEXT),
        ("text", TEXT + b"\n"),
    ],
)
def test_every_encoding_of_nrrd(tmp_path: Path, encoding: str, data: bytes) -> None:
    check(nrrd(tmp_path, data, encoding=encoding))
    for spoilt in (data[: len(data) // 2], data + data, b"?" + data[1:]):
        with pytest.raises(Refusal):
            read_volume(nrrd(tmp_path, spoilt, encoding=encoding))


@pytest.mark.parametrize("data", [b"70000 " * 24, b"1.5 " * 24, b"x " * 24])
def test_text_that_is_no_number_of_the_type_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read_volume(nrrd(tmp_path, data, encoding="ascii"))
    assert caught.value.code == "undecodable"


def test_text_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 5, len(TEXT)):
        monkeypatch.setattr("medseg.ingest.stored_values._TEXT_BYTES", size)
        check(nrrd(tmp_path, TEXT, encoding="ascii"))
        check(nrrd(tmp_path, TEXT + b"\n  \n", encoding="ascii"))
        for spoilt in (TEXT + b" 1", TEXT + b"\n1", TEXT[:-3]):
            with pytest.raises(Refusal):
                read_volume(nrrd(tmp_path, spoilt, encoding="ascii"))


def test_big_endian_values(tmp_path: Path) -> None:
    swapped = STORED.astype(">i2").tobytes(order="F")
    check(nrrd(tmp_path, swapped, endian="Big"))
    check(mha(tmp_path, swapped, BinaryDataByteOrderMSB="True"))
    check(mha(tmp_path, swapped, BinaryDataByteOrderMSB=None, ElementByteOrderMSB="true"))


def test_bytes_and_lines_before_the_values_are_left_out(tmp_path: Path) -> None:
    check(nrrd(tmp_path, b"12345" + RAW, byte_skip="5"))
    check(nrrd(tmp_path, b"anything at all" + RAW, byte_skip="-1"))
    check(nrrd(tmp_path, b"one\ntwo\n" + RAW, line_skip="2"))
    check(nrrd(tmp_path, b"one\n12" + RAW, line_skip="1", byte_skip="2"))
    check(nrrd(tmp_path, b"one\n" + gzip.compress(b"12" + RAW), encoding="gz", line_skip="1", byte_skip="2"))
    check(mha(tmp_path, b"anything at all" + RAW, HeaderSize="-1"))
    start = mha(tmp_path, HeaderSize="300").read_bytes().index(b"LOCAL\n") + 6
    check(mha(tmp_path, bytes(300 - start) + RAW, HeaderSize="300"))
    refused(nrrd(tmp_path, b"one" + RAW.replace(b"\n", b"\0"), line_skip="2"), "truncated")


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({"CompressedData": "True"}, zlib.compress(RAW)),
        ({"CompressedData": "true", "CompressedDataSize": "40"}, gzip.compress(RAW, mtime=0)),
        ({"BinaryData": "False"}, TEXT),
    ],
)
def test_every_encoding_of_metaimage(tmp_path: Path, fields: dict[str, Any], data: bytes) -> None:
    check(mha(tmp_path, data, **fields))
    for spoilt in (data[: len(data) // 2], b"?" + data[1:]):
        with pytest.raises(Refusal):
            read_volume(mha(tmp_path, spoilt, **fields))


@pytest.mark.parametrize(
    "last",
    [
        "ElementDataFile = LOCAL \n",
        "ElementDataFile=LOCAL\n",
        "ElementDataFile =\tLOCAL\t\r\n",
        "  ElementDataFile = Local\n",
        "elementdatafile = local\n",
    ],
)
def test_local_values_in_any_spelling(tmp_path: Path, last: str) -> None:
    check(mha(tmp_path, last=last))


@pytest.mark.parametrize("last", ["ElementDataFile = v.raw", "ElementDataFile = LIST\nv.raw\n", "ElementDataFile =\n"])
def test_values_in_other_files_are_refused_and_the_index_says_so(tmp_path: Path, last: str) -> None:
    refused(mha(tmp_path, b"", last=last), "unreadable", "another file")
    detached = mha(tmp_path, b"", last=last).rename(tmp_path / "w.mhd")
    refused(detached, "unreadable", "another file")


def test_a_detached_nrrd_is_refused_and_the_index_says_so(tmp_path: Path) -> None:
    path = nrrd(tmp_path, b"", data_file="v.raw").rename(tmp_path / "v.nhdr")
    refused(path, "unreadable", "another file")
    path.write_bytes(path.read_bytes().rstrip())  # a header that ends with the file
    refused(path, "unreadable", "another file")


@pytest.mark.parametrize("length", [60_000, 65_400, 70_000, 3_000_000])
def test_long_headers_are_read_to_their_end(tmp_path: Path, length: int) -> None:
    check(nrrd(tmp_path, lines="".join(f"Segment{n}_Tags:={'x' * 600}\n" for n in range(length // 615))))
    check(mha(tmp_path, Comment="x" * length))


@pytest.mark.parametrize("make", [nrrd, mha])
def test_more_or_fewer_values_than_declared_are_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    refused(make(tmp_path, RAW[:-2]), "truncated")
    refused(make(tmp_path, RAW + RAW), "unreadable")  # the type is wider than declared
    refused(make(tmp_path, RAW + RAW[:24]), "unreadable")  # one slice more
    check(make(tmp_path, RAW + b"\n"))


def test_met_long_has_four_bytes_as_in_metaio(tmp_path: Path) -> None:
    path = mha(tmp_path, STORED.astype("<i4").tobytes(order="F"), ElementType="MET_LONG")
    np.testing.assert_array_equal(read_volume(path)[0], SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T)
    refused(mha(tmp_path, STORED.astype("<i8").tobytes(order="F"), ElementType="MET_LONG"), "unreadable")
