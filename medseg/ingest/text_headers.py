"""The text headers of MetaImage (.mha) and NRRD (.nrrd) files: size, type and place, before any value is read.

ITK fills what such a header leaves out with an identity; here it is ``no-geometry``. Sources: the MetaIO tag list of
ITK's wiki, and the definition of the NRRD file format (teem.sourceforge.net/nrrd/format.html).
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry, lps_to_ras
from medseg.ingest.elements import open_file
from medseg.ingest.limits import check_volume_size

__all__ = ["TextHeader", "read_metaimage_header", "read_nrrd_header"]

_LONGEST: Final = 64 * 1024
_META_BYTES: Final = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_NRRD_BYTES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t", "ulonglong", "uint64", "uint64_t", "double"), 8),
}
_NRRD_SPACES: Final = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}


@dataclass(frozen=True)
class TextHeader:
    """What a text header says, checked."""

    geometry: Geometry
    bytes_per_voxel: int
    data_offset: int
    is_compressed: bool

    @property
    def data_bytes(self) -> int:
        """Number of bytes of the values, uncompressed."""
        return math.prod(self.geometry.shape) * self.bytes_per_voxel


def read_metaimage_header(path: str | os.PathLike[str]) -> TextHeader:
    """The checked header of a .mha file.

    Raises
    ------
    Refusal
        ``unreadable``, ``not-3d``, ``colour``, ``too-large``, ``no-geometry`` or ``singular-affine``.
    """
    begin = _begin(path)
    match = re.search(rb"^\s*ElementDataFile\s*=\s*(.*?)\r?\n", begin, re.MULTILINE)
    if match is None:
        raise Refusal("unreadable", "not a MetaImage: no line ElementDataFile; check what the file is")
    if match.group(1) != b"LOCAL":
        raise Refusal("unreadable", "the MetaImage's values are in another file, expected ElementDataFile = LOCAL")
    fields = _fields(begin[: match.end()], "=")
    shape = _shape(fields.get("DimSize", ""))
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise Refusal("colour", f"{fields['ElementNumberOfChannels']} values per voxel, expected 1; split the channels")
    size = _META_BYTES.get(fields.get("ElementType", ""))
    if size is None:
        raise Refusal("undecodable", f"MetaImage element type {fields.get('ElementType')!r} is not a real number type")
    check_volume_size(shape, size)
    spacing = _numbers(_either(fields, "ElementSpacing", "ElementSize"), 3, "ElementSpacing")
    origin = _numbers(_either(fields, "Offset", "Position", "Origin"), 3, "Offset")
    matrix = _numbers(_either(fields, "TransformMatrix", "Orientation", "Rotation"), 9, "TransformMatrix")
    affine = np.eye(4)
    affine[:3, :3] = matrix.reshape(3, 3).T * spacing  # each row of the header is the direction of one array axis
    affine[:3, 3] = origin
    compressed = fields.get("CompressedData", "False").lower() == "true"
    return TextHeader(Geometry(shape, lps_to_ras(affine)), size, match.end(), compressed)


def read_nrrd_header(path: str | os.PathLike[str]) -> TextHeader:
    """The checked header of a .nrrd file.

    Raises
    ------
    Refusal
        ``unreadable``, ``undecodable``, ``not-3d``, ``too-large``, ``no-geometry`` or ``singular-affine``.
    """
    begin = _begin(path)
    end = re.search(rb"\r?\n\r?\n", begin)
    if not begin.startswith(b"NRRD000") or end is None:
        raise Refusal("unreadable", "not NRRD: no magic or no end of the header; check what the file is")
    fields = _fields(begin[: end.start()], ":")
    if "data file" in fields or "datafile" in fields:
        raise Refusal("unreadable", "the NRRD's values are in another file, expected them in the .nrrd itself")
    shape = _shape(fields.get("sizes", ""))
    size = _NRRD_BYTES.get(fields.get("type", "").lower())
    if size is None:
        raise Refusal("undecodable", f"NRRD type {fields.get('type')!r} is not a real number type")
    check_volume_size(shape, size)
    compressed = fields.get("encoding", "").lower() != "raw"
    return TextHeader(Geometry(shape, _nrrd_affine(fields)), size, end.end(), compressed)


def _nrrd_affine(fields: dict[str, str]) -> NDArray[np.float64]:
    signs = _NRRD_SPACES.get(fields.get("space", "").lower())
    if signs is None:
        found = fields.get("space", "nothing")
        raise Refusal(
            "no-geometry", f"NRRD space is {found!r}, expected an anatomical one such as left-posterior-superior"
        )
    directions = re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))
    origin = re.findall(r"\(([^)]*)\)", fields.get("space origin", ""))
    if len(directions) != 3 or len(origin) != 1:
        raise Refusal("no-geometry", "NRRD space directions or space origin are absent or not three vectors; set them")
    affine = np.eye(4)
    for axis, text in enumerate(directions):
        affine[:3, axis] = _numbers(text.replace(",", " "), 3, "space directions")
    affine[:3, 3] = _numbers(origin[0].replace(",", " "), 3, "space origin")
    return np.diag([*signs, 1.0]) @ affine


def _begin(path: str | os.PathLike[str]) -> bytes:
    with open_file(path) as handle:
        return handle.read(_LONGEST)


def _fields(header: bytes, separator: str) -> dict[str, str]:
    lines = (line.partition(separator) for line in header.decode("latin-1").splitlines() if not line.startswith("#"))
    return {key.strip(): value.lstrip("=").strip() for key, _, value in lines if value}


def _either(fields: dict[str, str], *names: str) -> str:
    return next((fields[name] for name in names if name in fields), "")


def _shape(text: str) -> tuple[int, int, int]:
    try:
        sizes = [int(part) for part in text.split()]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise Refusal("unreadable", f"impossible sizes {text!r} in the header; write the file again from its source")
    if len(sizes) != 3:
        raise Refusal("not-3d", f"the file has {len(sizes)} axes, expected 3; give one 3D volume")
    return sizes[0], sizes[1], sizes[2]


def _numbers(text: str, count: int, name: str) -> NDArray[np.float64]:
    try:
        found = np.array([float(part) for part in text.split()])
    except ValueError:
        found = np.empty(0)
    if found.size != count:
        raise Refusal("no-geometry", f"{name} is absent or not {count} numbers (found {text!r}); set it in the header")
    return found
