"""The header of a MetaImage (.mha, .mhd): size, type, place and unit, before any value is read.

Source: the tag list of MetaIO (ITK's wiki) and, where it is silent, what MetaIO's reader does.
"""

from __future__ import annotations

import os
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry, lps_to_ras
from medseg.ingest import gzip_bytes
from medseg.ingest.elements import open_file
from medseg.ingest.limits import check_field_of_view, check_volume_size
from medseg.ingest.stored_values import Encoding, StoredValues
from medseg.ingest.text_headers import (
    Fields,
    TextHeader,
    finite_or_refused,
    header_lines,
    header_shape,
    read_header_bytes,
    to_mm,
    vector,
)

__all__ = ["read_metaimage_header"]

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


def read_metaimage_header(path: str | os.PathLike[str]) -> TextHeader:
    """The checked header of a MetaImage that holds its values itself.

    Raises
    ------
    Refusal
        ``unreadable``, ``undecodable``, ``not-3d``, ``colour``, ``too-large``, ``no-geometry`` or ``singular-affine``.
    OSError
        The file cannot be read.
    """
    begin, last = read_header_bytes(path, _LAST_LINE)
    if last is None:
        raise Refusal("unreadable", "not a MetaImage: no line ElementDataFile; check what the file is")
    if last.group(1).strip().lower() != b"local":
        raise Refusal(
            "unreadable",
            "the MetaImage's values are in another file, expected ElementDataFile = LOCAL; convert it to .mha",
        )
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
    return TextHeader(geometry, _stored(path, fields, geometry, dtype, last.end(), notes), tuple(notes))


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
    geometry: Geometry,
    dtype: np.dtype[np.generic],
    header_end: int,
    notes: list[str],
) -> StoredValues:
    is_text, packed = not _truth(fields, "BinaryData", absent=True), _truth(fields, "CompressedData")
    if is_text and packed:
        raise Refusal("unreadable", "BinaryData is False and CompressedData True; correct the header at its source")
    encoding: Encoding = "text" if is_text else "raw"
    plain = StoredValues(geometry.shape, dtype, header_end, encoding, scaling=_scaling(fields, notes))
    offset = _offset(path, fields, plain, packed=packed)
    if packed:
        with open_file(path) as handle:
            handle.seek(offset)
            encoding = "gzip" if gzip_bytes.is_gzip(handle.read(2)) else "zlib"  # MetaIO's reader takes both
    return StoredValues(plain.shape, dtype, offset, encoding, scaling=plain.scaling)


def _offset(path: str | os.PathLike[str], fields: Fields, plain: StoredValues, *, packed: bool) -> int:
    """HeaderSize counts from the begin of the file; -1 puts the values at its end."""
    size, there = fields.number("HeaderSize", 0), os.stat(path).st_size  # noqa: PTH116
    if size == 0:
        return plain.offset
    if size == -1 and not packed and plain.encoding == "raw":
        return max(plain.offset, there - plain.data_bytes)
    if not plain.offset <= size <= there:
        raise Refusal(
            "unreadable",
            f"HeaderSize is {size}, the header ends after {plain.offset} of {there} bytes; write the file again",
        )
    return size


def _scaling(fields: Fields, notes: list[str]) -> tuple[float, float] | None:
    slope = finite_or_refused(fields.get("ElementToIntensityFunctionSlope"), "ElementToIntensityFunctionSlope", 1.0)
    offset = finite_or_refused(fields.get("ElementToIntensityFunctionOffset"), "ElementToIntensityFunctionOffset", 0.0)
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
