"""A NIfTI header, read from its bytes and believed only where it agrees with itself and with its file.

Geometry: the sform is used where it is coded, else the qform. Where both are coded they must name the same place;
if they differ, the header is accepted only when it says so itself (different codes: scanner and a template) and both
agree on which way the axes run. Nothing is guessed: two codes of 0 are ``no-geometry``.
Source: the NIfTI-1 and NIfTI-2 headers with their comments (nifti1.h, nifti2.h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import POSITION_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION, Geometry
from medseg.resources import check_field_of_view, check_volume_size

LONGEST_HEADER: Final = 540
_SIZES: Final = {348: Nifti1Header, 540: Nifti2Header}
_MAGIC: Final = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")}
_NUMBERS: Final = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_COLOURS: Final = {128: "RGB", 2304: "RGBA"}
_MM_PER_UNIT: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_SCANNER_CODES: Final = (1, 2)


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header says, checked.

    Attributes
    ----------
    geometry
        Grid in mm, RAS+.
    dtype
        Type of the stored values, in their byte order.
    scaling
        Slope and intercept; ``None`` where there is none.
    data_offset
        Where the values begin in the file that holds them.
    is_pair
        The values are in a second file (.img).
    notes
        What is worth knowing.
    """

    geometry: Geometry
    dtype: np.dtype[Any]
    scaling: tuple[float, float] | None
    data_offset: int
    is_pair: bool
    notes: tuple[str, ...]


def parse_header(block: bytes) -> NiftiHeader:
    """Check the first bytes of a NIfTI file.

    Parameters
    ----------
    block
        At least the first 540 bytes, or all of a shorter file.

    Raises
    ------
    Refusal
        ``unreadable``, ``truncated``, ``not-3d``, ``colour``, ``undecodable``, ``too-large``, ``no-geometry`` or
        ``singular-affine``.
    """
    header = _structure(block)
    notes: list[str] = []
    shape = _shape(header, notes)
    dtype = _dtype(header)
    check_volume_size(shape, dtype.itemsize)
    is_pair = header["magic"].item().startswith((b"ni1", b"ni2"))
    geometry = Geometry(shape, _affine(header, shape, notes))
    check_field_of_view(geometry)
    return NiftiHeader(geometry, dtype, _scaling(header), _data_offset(header, is_pair), is_pair, tuple(notes))


def _structure(block: bytes) -> Any:
    for size, kind in _SIZES.items():
        for order in "<>":
            if block[:4] == np.array(size, f"{order}i4").tobytes():
                if len(block) < size:
                    raise Refusal("truncated", f"the file ends after {len(block)} bytes, inside its header of {size}")
                header = kind(block[:size], endianness=order, check=False)
                magic = block[344:348] if size == 348 else block[4:12]
                if magic not in _MAGIC[size]:
                    found = "Analyze 7.5, which has no orientation" if magic == bytes(4) else repr(magic)
                    raise Refusal("unreadable", f"the header's magic is not NIfTI's ({found}); convert the file again")
                return header
    if len(block) < 4:
        raise Refusal("truncated", f"the file has {len(block)} bytes, less than a NIfTI header")
    raise Refusal("unreadable", "not NIfTI: the header's size is neither 348 nor 540; check what the file is")


def _shape(header: Any, notes: list[str]) -> tuple[int, int, int]:
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise Refusal("unreadable", f"impossible dimensions {dim} in the header; write the file again from its source")
    sizes = dim[1 : dim[0] + 1]
    shape = sizes[:3]
    if len(sizes) < 3 or max(sizes[3:], default=1) > 1:
        found = "×".join(str(size) for size in sizes)
        raise Refusal("not-3d", f"the file holds {found} values, expected one 3D volume; split it first")
    if len(sizes) > 3:
        notes.append(f"{len(sizes) - 3} trailing dimensions of size 1 were dropped")
    return shape[0], shape[1], shape[2]


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code in _COLOURS:
        raise Refusal("colour", f"the values are {_COLOURS[code]} colours, expected numbers; give the original volume")
    if code not in _NUMBERS:
        raise Refusal("undecodable", f"NIfTI data type {code} (complex, binary or unknown); expected real numbers")
    dtype = np.dtype(_NUMBERS[code]).newbyteorder(header.endianness)
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise Refusal("unreadable", f"bitpix is {int(header['bitpix'])} for data type {code}; write the file again")
    return dtype


def _scaling(header: Any) -> tuple[float, float] | None:
    """Slope and intercept; a slope of 0 means no scaling (nifti1.h)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or (slope, intercept) == (1.0, 0.0) or (math.isnan(slope) and math.isnan(intercept)):
        return None
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise Refusal("non-finite", f"scl_slope {slope} and scl_inter {intercept} are not finite; write the file again")
    return slope, intercept


def _data_offset(header: Any, is_pair: bool) -> int:
    offset = float(header["vox_offset"])
    least = 0 if is_pair else int(header["sizeof_hdr"]) + 4
    if not math.isfinite(offset) or offset != int(offset) or offset < least:
        raise Refusal("unreadable", f"vox_offset is {offset}, expected at least {least}; write the file again")
    return int(offset)


def _affine(header: Any, shape: tuple[int, int, int], notes: list[str]) -> NDArray[np.float64]:
    qcode, scode = int(header["qform_code"]), int(header["sform_code"])
    if not 0 <= qcode <= 5 or not 0 <= scode <= 5:
        raise Refusal("no-geometry", f"qform_code {qcode} and sform_code {scode} are not NIfTI codes; set them right")
    if qcode == 0 and scode == 0:
        raise Refusal(
            "no-geometry", "qform_code and sform_code are both 0: the file does not say where it lies; set one"
        )
    mm = _mm_per_unit(header, notes)
    sform = None if scode == 0 else _sform(header, mm)
    qform = None if qcode == 0 else _qform(header, mm)
    if sform is None or qform is None:
        chosen = qform if sform is None else sform
        assert chosen is not None
        return chosen
    _compare(Geometry(shape, qform), Geometry(shape, sform), (qcode, scode), notes)
    return sform


def _mm_per_unit(header: Any, notes: list[str]) -> float:
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise Refusal("unreadable", f"spatial unit {unit} is not a NIfTI unit; write the file again")
    if unit != 2:
        meaning = {0: "not declared, taken as mm", 1: "metres, converted to mm", 3: "micrometres, converted to mm"}[
            unit
        ]
        notes.append(f"spatial unit {meaning}")
    return _MM_PER_UNIT[unit]


def _sform(header: Any, mm: float) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = [header["srow_x"], header["srow_y"], header["srow_z"]]
    affine[:3] *= mm
    return affine


def _qform(header: Any, mm: float) -> NDArray[np.float64]:
    quaternion = np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], dtype=np.float64)
    offsets = np.array([header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]], dtype=np.float64)
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)
    sound = np.isfinite([*quaternion, *offsets, *pixdim[:4]]).all()
    if not sound or quaternion @ quaternion > 1 + 1e-5 or (pixdim[1:4] <= 0).any() or pixdim[0] not in (-1, 0, 1):
        raise Refusal(
            "singular-affine",
            f"the qform is coded but not a rotation with positive pixdim (quaternion {quaternion.tolist()}, "
            f"pixdim {pixdim[:4].tolist()}); write the file again, or set qform_code to 0 if the sform is right",
        )
    affine = np.eye(4)
    affine[:3, :3] = _rotation(quaternion) * pixdim[1:4] * [1, 1, -1 if pixdim[0] == -1 else 1] * mm
    affine[:3, 3] = offsets * mm
    return affine


def _rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    b, c, d = quaternion
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _compare(qform: Geometry, sform: Geometry, codes: tuple[int, int], notes: list[str]) -> None:
    """Refuse a qform and an sform that contradict each other."""
    difference_mm = qform.displacement_mm(sform)
    if difference_mm <= max(POSITION_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION * min(sform.spacing_mm)):
        return
    same_frame = codes[0] == codes[1] or (codes[0] in _SCANNER_CODES and codes[1] in _SCANNER_CODES)
    if same_frame or qform.orientation != sform.orientation:
        raise Refusal(
            "no-geometry",
            f"qform (code {codes[0]}) and sform (code {codes[1]}) place the volume {difference_mm:.2f} mm apart "
            f"({qform.orientation}, {sform.orientation}); find out which is right and set the other's code to 0",
        )
    notes.append(
        f"sform (code {codes[1]}) used; qform (code {codes[0]}) names another frame, up to {difference_mm:.1f} mm away"
    )
