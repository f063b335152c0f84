"""The headers of MetaImage (.mha, .mhd) and NRRD files: size, type, place and unit, before any value is read.

Sources: the tag list of MetaIO (ITK's wiki) and, where it is silent, what MetaIO's reader does; the definition of the
NRRD file format (teem.sourceforge.net/nrrd/format.html). Both must hold their values themselves.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry, lps_to_ras
from medseg.ingest.dicom_elements import open_file
from medseg.ingest.stored_values import Encoding, ImageHeader, StoredValues, is_gzip
from medseg.ingest.text_headers import (
    UNDECLARED,
    Fields,
    header_lines,
    header_shape,
    read_header_bytes,
    to_mm,
    to_number,
    vector,
)
from medseg.resources import check_field_of_view, check_volume_size

_LAST_LINE: Final = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)(?:\r?\n|\Z)", re.MULTILINE | re.IGNORECASE)
_TYPES: Final = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # four bytes on every machine (metaTypes.h)
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_TRUTHS: Final = {**dict.fromkeys(("true", "t", "1", "yes"), True), **dict.fromkeys(("false", "f", "0", "no"), False)}
_FROM_LETTERS: Final = str.maketrans("RLAPISrlapis", "LRPASILRPASI")
"""MetaIO's letters say where an axis comes from, those of a grid where it goes."""


def read_metaimage_header(path: str | os.PathLike[str]) -> ImageHeader:
    """The checked header of a MetaImage; a Refusal says what is wrong."""
    begin, last = read_header_bytes(path, _LAST_LINE)
    if last is None:
        raise Refusal("unreadable", "not a MetaImage: no line ElementDataFile; check what the file is")
    if last.group(1).strip().lower() != b"local":
        message = "the MetaImage's values are in another file, expected ElementDataFile = LOCAL; convert it to .mha"
        raise Refusal("unreadable", message)
    pairs = (line.partition("=") for line in header_lines(begin[: last.end()]))
    fields = Fields((name, value) for name, separator, value in pairs if separator)
    notes: list[str] = []
    shape = header_shape(fields.get("DimSize"), fields.get("NDims"))
    if fields.number("ElementNumberOfChannels", 1) != 1:
        found = fields.get("ElementNumberOfChannels")
        raise Refusal("colour", f"{found} values per voxel, expected 1; split the channels")
    dtype = _dtype(fields)
    check_volume_size(shape, dtype.itemsize)
    geometry = Geometry(shape, lps_to_ras(_affine_lps(fields, notes)))
    check_field_of_view(geometry)
    _compare_letters(fields, geometry, notes)
    return ImageHeader(geometry, _stored(path, fields, shape, dtype, last.end(), notes), tuple(notes))


def _dtype(fields: Fields) -> np.dtype[np.generic]:
    name = fields.get("ElementType").upper()
    if name not in _TYPES:
        raise Refusal("undecodable", f"MetaImage element type {name!r} is not a real number type; convert the file")
    big = _truth(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")  # MetaIO takes both for one
    return np.dtype(_TYPES[name]).newbyteorder(">" if big else "<")


def _affine_lps(fields: Fields, notes: list[str]) -> NDArray[np.float64]:
    spacing = vector(fields.get("ElementSpacing") or fields.get("ElementSize"), 3, "ElementSpacing")
    if spacing.min() <= 0:
        raise Refusal("no-geometry", f"ElementSpacing is {spacing.tolist()}, expected positive numbers; set it right")
    origin = vector(fields.get("Offset", "Position", "Origin"), 3, "Offset")
    matrix = vector(fields.get("TransformMatrix", "Orientation", "Rotation"), 9, "TransformMatrix")
    affine = np.eye(4)
    affine[:3, :3] = matrix.reshape(3, 3).T * spacing  # each row of the header is the direction of one array axis
    affine[:3, 3] = origin
    if fields.get("DistanceUnits"):
        unit = fields.get("DistanceUnits").strip("\"'")
        affine[:3] *= to_mm([unit] * 3, "DistanceUnits", notes)[:, None]
    return affine


def _compare_letters(fields: Fields, geometry: Geometry, notes: list[str]) -> None:
    """TransformMatrix decides; many writers put the same AnatomicalOrientation into every file."""
    letters = fields.get("AnatomicalOrientation")
    goes_to = letters.translate(_FROM_LETTERS).upper()
    if len(goes_to) == 3 and set(goes_to) <= set("RLAPIS") and goes_to != geometry.orientation:
        notes.append(f"AnatomicalOrientation {letters} contradicts TransformMatrix, which was used")


def _stored(
    path: str | os.PathLike[str],
    fields: Fields,
    shape: tuple[int, int, int],
    dtype: np.dtype[np.generic],
    header_end: int,
    notes: list[str],
) -> StoredValues:
    is_text, packed = not _truth(fields, "BinaryData", absent=True), _truth(fields, "CompressedData")
    if is_text and packed:
        raise Refusal("unreadable", "BinaryData is False and CompressedData True; correct the header at its source")
    encoding: Encoding = "text" if is_text else "raw"
    stored = StoredValues(os.fspath(path), shape, dtype, header_end, encoding, scaling=_scaling(fields, notes))
    offset = _offset(fields, stored, packed=packed)
    if packed:
        encoding = "gzip" if is_gzip(path, offset) else "zlib"  # MetaIO's reader takes both
    return replace(stored, offset=offset, encoding=encoding)


def _offset(fields: Fields, stored: StoredValues, *, packed: bool) -> int:
    """HeaderSize counts from the begin of the file; -1 puts the values at its end."""
    size, there = fields.number("HeaderSize", 0), os.stat(stored.path).st_size  # noqa: PTH116
    if size == 0:
        return stored.offset
    if size == -1 and not packed and stored.encoding == "raw":
        return max(stored.offset, there - stored.data_bytes)
    if not stored.offset <= size <= there:
        message = f"HeaderSize is {size}, the header ends after {stored.offset} of {there} bytes; write the file again"
        raise Refusal("unreadable", message)
    return size


def _scaling(fields: Fields, notes: list[str]) -> tuple[float, float] | None:
    slope = fields.finite("ElementToIntensityFunctionSlope", 1.0)
    offset = fields.finite("ElementToIntensityFunctionOffset", 0.0)
    if slope == 0:
        raise Refusal("undecodable", "ElementToIntensityFunctionSlope is 0, so that all values are one; correct it")
    if (slope, offset) == (1.0, 0.0):
        return None
    notes.append(f"the intensity function of the header was applied: value × {slope:g} + {offset:g}")
    return slope, offset


def _truth(fields: Fields, *names: str, absent: bool = False) -> bool:
    found = {_TRUTHS.get(fields.get(name).lower()) for name in names if fields.get(name)}
    if None in found or len(found) > 1:
        shown = ", ".join(f"{name} = {fields.get(name)}" for name in names if fields.get(name))
        raise Refusal("unreadable", f"found {shown}, expected one of True and False; correct the header at its source")
    return bool(found.pop()) if found else absent


_END: Final = re.compile(rb"\r?\n\r?\n")
_MOST_SKIPPED_LINES: Final = 1024
_LONGEST_SKIPPED_LINE: Final = 64 * 1024
_NRRD_TYPES: Final = {
    name: code
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
_ENCODINGS: Final[dict[str, Encoding]] = {
    "raw": "raw",
    **dict.fromkeys(("gz", "gzip"), "gzip"),
    **dict.fromkeys(("bz2", "bzip2"), "bzip2"),
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
    "hex": "hex",
}
_SPACES: Final = {
    **dict.fromkeys(("rightanteriorsuperior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("leftanteriorsuperior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("leftposteriorsuperior", "lps"), (-1, -1, 1)),
}
_PLACES: Final = ("domain", "space", "none", "???", "")
"""Kinds of axes along which voxels lie; the others count components, times or points."""
_VECTOR: Final = re.compile(r"\(([^()]*)\)|\bnone\b", re.IGNORECASE)
_UNIT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def read_nrrd_header(path: str | os.PathLike[str]) -> ImageHeader:
    """The checked header of an NRRD file; a Refusal says what is wrong."""
    begin, end = read_header_bytes(path, _END)
    if not begin.startswith(b"NRRD000"):
        raise Refusal("unreadable", "not NRRD: no magic at its begin; check what the file is")
    fields = _fields(begin if end is None else begin[: end.start()])
    if fields.get("data file", "datafile"):
        message = "the NRRD's values are in another file, expected them in the .nrrd itself; convert it"
        raise Refusal("unreadable", message)
    if end is None:
        raise Refusal("unreadable", "the NRRD's header has no end (an empty line); copy the file again")
    notes: list[str] = []
    shape = header_shape(fields.get("sizes"), fields.get("dimension"))
    _check_kinds(fields)
    dtype = _nrrd_dtype(fields)
    check_volume_size(shape, dtype.itemsize)
    geometry = Geometry(shape, _affine(fields, notes))
    check_field_of_view(geometry)
    _check_other_lengths(fields, geometry)
    _check_not_quantised(fields)
    return ImageHeader(geometry, _nrrd_stored(path, fields, shape, dtype, end.end()), tuple(notes))


def _fields(header: bytes) -> Fields:
    """The fields alone: ``key:=value`` is a note of the writer, whatever its key, and ``#`` begins a comment."""
    pairs = []
    for line in header_lines(header)[1:]:
        name, separator, value = line.partition(":")
        if separator and not value.startswith("=") and not line.startswith("#"):
            pairs.append((name, value))
    return Fields(pairs)


def _check_kinds(fields: Fields) -> None:
    kinds = fields.get("kinds").lower().split()
    others = [kind for kind in kinds if kind.strip('"') not in _PLACES]
    if others or len(kinds) not in (0, 3):
        raise Refusal("not-3d", f"the axes are of kinds {' '.join(kinds)}, expected three of space; give one 3D volume")


def _nrrd_dtype(fields: Fields) -> np.dtype[np.generic]:
    name = " ".join(fields.get("type").lower().split())
    if name not in _NRRD_TYPES:
        raise Refusal("undecodable", f"NRRD type {name!r} is not a real number type; convert the file")
    endian = fields.get("endian").lower()
    dtype = np.dtype(_NRRD_TYPES[name])
    binary = _encoding(fields) != "text"
    if binary and dtype.itemsize > 1 and endian not in ("little", "big"):
        raise Refusal("unreadable", f"endian is {endian!r}, expected little or big; write the file again")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _encoding(fields: Fields) -> Encoding:
    name = fields.get("encoding").lower()
    if name not in _ENCODINGS:
        raise Refusal("undecodable", f"NRRD encoding {name!r} is not known, expected raw or gzip; convert the file")
    return _ENCODINGS[name]


def _affine(fields: Fields, notes: list[str]) -> NDArray[np.float64]:
    written = fields.get("space")
    signs = _SPACES.get(re.sub(r"[-\s]", "", written.lower()))
    if signs is None:
        message = f"NRRD space is {written or 'nothing'!r}, expected an anatomical one such as left-posterior-superior"
        raise Refusal("no-geometry", message)
    directions = [match.group(1) for match in _VECTOR.finditer(fields.get("space directions"))]
    origin = [match.group(1) for match in _VECTOR.finditer(fields.get("space origin"))]
    if len(directions) != 3 or len(origin) != 1 or None in (*directions, *origin):
        raise Refusal("no-geometry", "NRRD space directions or space origin are absent or not three vectors; set them")
    affine = np.eye(4)
    for axis, text in enumerate(directions):
        affine[:3, axis] = vector(text.replace(",", " "), 3, "space directions")
    affine[:3, 3] = vector(origin[0].replace(",", " "), 3, "space origin")  # of the first voxel, however centred
    affine[:3] *= _mm_of_space(fields, notes)[:, None]
    return np.diag([*signs, 1.0]) @ affine


def _mm_of_space(fields: Fields, notes: list[str]) -> NDArray[np.float64]:
    """Millimetres per unit along each axis of the space: ``space units`` are no property of the array's axes."""
    written = fields.get("space units")
    if not written:
        return np.ones(3)
    units = [quoted or bare for quoted, bare in _UNIT.findall(written)]
    if len(units) != 3:
        raise Refusal("no-geometry", f'space units are {written!r}, expected three such as "mm"; set them right')
    return to_mm(units, "space units", notes)


def _check_other_lengths(fields: Fields, geometry: Geometry) -> None:
    """``units`` and ``spacings`` may not stand beside ``space directions``; where they do, they must agree."""
    written = fields.get("units")
    units = [quoted or bare for quoted, bare in _UNIT.findall(written)]
    if (to_mm([unit for unit in units if unit.lower() not in UNDECLARED], "units", []) != 1).any():
        raise Refusal("no-geometry", f"units are {written} beside space directions; give one of them in the header")
    for found, expected in zip(fields.get("spacings").split(), geometry.spacing_mm, strict=False):
        spacing = to_number(found)
        if math.isfinite(spacing) and abs(spacing - expected) > 1e-3 * expected:
            raise Refusal(
                "no-geometry",
                f"spacings {fields.get('spacings')} contradict the space directions ({expected:g} mm); correct them",
            )


def _check_not_quantised(fields: Fields) -> None:
    for name in ("old min", "old max"):
        if math.isfinite(to_number(fields.get(name))):
            raise Refusal(
                "undecodable",
                f"{name} says that the values were quantised and are not what was measured; "
                "restore them first (unu unquantize)",
            )


def _nrrd_stored(
    path: str | os.PathLike[str],
    fields: Fields,
    shape: tuple[int, int, int],
    dtype: np.dtype[np.generic],
    header_end: int,
) -> StoredValues:
    encoding, skip = _encoding(fields), fields.number("byte skip", 0)
    offset = _after_lines(path, header_end, fields.number("line skip", 0))
    stored = StoredValues(os.fspath(path), shape, dtype, offset, encoding)
    if skip == -1 and encoding == "raw":  # the values end where the file does
        return replace(stored, offset=max(offset, os.stat(path).st_size - stored.data_bytes))  # noqa: PTH116
    if skip < 0 or (skip and encoding in ("text", "hex")):
        raise Refusal("unreadable", f"byte skip is {skip} for {encoding} values, which cannot be; write the file again")
    return replace(stored, offset=offset + skip) if encoding == "raw" else replace(stored, skip=skip)


def _after_lines(path: str | os.PathLike[str], start: int, lines: int) -> int:
    """Where the values begin after so many lines, which stand before them uncompressed."""
    if not 0 <= lines <= _MOST_SKIPPED_LINES:
        raise Refusal("unreadable", f"line skip is {lines}, expected 0 to {_MOST_SKIPPED_LINES}; write the file again")
    if not lines:
        return start
    with open_file(path) as handle:
        handle.seek(start)
        begin = handle.read(lines * _LONGEST_SKIPPED_LINE)
    parts = begin.split(b"\n", lines)
    if len(parts) <= lines:
        raise Refusal("truncated", f"the file has fewer than the {lines} lines to skip; copy it again")
    return start + len(begin) - len(parts[-1])
