"""NIfTI: a header is believed only where it agrees with itself and with its file; volumes are written whole or not.

Geometry: the sform is used where it is coded, else the qform. Where both are coded they must name the same place;
if they differ, the header is accepted only when it says so itself (different codes: scanner and a template) and both
agree on which way the axes run. Nothing is guessed: two codes of 0 are ``no-geometry``.
Source: the NIfTI-1 and NIfTI-2 headers with their comments (nifti1.h, nifti2.h).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header, data_type_codes
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import quat2mat
from numpy.typing import ArrayLike, NDArray

from medseg.errors import Refusal, UsageError
from medseg.files import atomic_path
from medseg.geometry import POSITION_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION, Geometry
from medseg.ingest.record import pair_of, plain_name
from medseg.ingest.stored_values import ImageHeader, StoredValues, check_finite, is_gzip, read_begin
from medseg.resources import check_field_of_view, check_volume_size

_LONGEST_HEADER: Final = 540
_CLASSES: Final = {348: Nifti1Header, 540: Nifti2Header}
_MAGIC: Final = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")}
_UNITS: Final = {
    0: (1.0, "not declared, taken as mm"),
    1: (1000.0, "metres, converted to mm"),
    2: (1.0, ""),
    3: (0.001, "micrometres, converted to mm"),
}
_SCANNER_CODES: Final = (1, 2)

_FASTEST: Final = 1
_HEADER_AND_EXTENSION: Final = 352
_SLICES_AT_ONCE: Final = 16
_LONGEST_AXIS: Final = 32767


def read_nifti_header(path: str | os.PathLike[str]) -> ImageHeader:
    """The checked header of a .nii, .nii.gz, .hdr or .img file; nothing else is read.

    Refused are ``unreadable``, ``truncated``, ``not-3d``, ``colour``, ``undecodable``, ``too-large``, ``no-geometry``,
    ``singular-affine`` and ``non-finite`` (a scale); a file that cannot be read is an OSError.
    """
    header_file, data_file = _both_halves(path)
    header, is_pair = _structure(read_begin(header_file, _LONGEST_HEADER))
    notes: list[str] = []
    shape, dtype = _shape(header, notes), _dtype(header)
    check_volume_size(shape, dtype.itemsize)
    geometry = Geometry(shape, _affine(header, shape, notes))
    check_field_of_view(geometry)
    scaling, offset = _scaling(header), _data_offset(header, is_pair)
    if is_pair != (header_file != data_file):
        expected = "a second file (.img) with the values" if is_pair else "a single file (.nii)"
        raise Refusal("unreadable", f"the header's magic asks for {expected}; rename or convert the file")
    if is_gzip(data_file):  # vox_offset counts decompressed bytes
        stored = StoredValues(data_file, shape, dtype, 0, "gzip", skip=offset, scaling=scaling)
    else:
        stored = StoredValues(data_file, shape, dtype, offset, scaling=scaling)
    return ImageHeader(geometry, stored, tuple(notes))


def _both_halves(path: str | os.PathLike[str]) -> tuple[str, str]:
    header, data = pair_of(path) or (os.fspath(path), os.fspath(path))
    for half, other in ((header, data), (data, header)):
        if half != other and not os.path.exists(half):  # noqa: PTH110 - names that are not UTF-8 survive
            there, absent = (plain_name(os.path.basename(path)) for path in (other, half))  # noqa: PTH119
            message = f"{there} is one half of a pair, and {absent} is not beside it; copy both files"
            raise Refusal("unreadable", message)
    return header, data


def _structure(block: bytes) -> tuple[Any, bool]:
    """The header as nibabel's, unchecked, and whether its magic says that the values are in a second file."""
    for size, kind in _CLASSES.items():
        for order in "<>":
            if block[:4] == np.array(size, f"{order}i4").tobytes():
                if len(block) < size:
                    raise Refusal("truncated", f"the file ends after {len(block)} bytes, inside its header of {size}")
                magic = block[344:348] if size == 348 else block[4:12]
                if magic not in _MAGIC[size]:
                    found = "Analyze 7.5, which has no orientation" if magic == bytes(4) else repr(magic)
                    raise Refusal("unreadable", f"the header's magic is not NIfTI's ({found}); convert the file again")
                return kind(block[:size], endianness=order, check=False), magic == _MAGIC[size][1]
    if len(block) < 4:
        raise Refusal("truncated", f"the file has {len(block)} bytes, less than a NIfTI header")
    raise Refusal("unreadable", "not NIfTI: the header's size is neither 348 nor 540; check what the file is")


def _shape(header: Any, notes: list[str]) -> tuple[int, int, int]:
    dim = [int(n) for n in header["dim"]]
    sizes = dim[1 : dim[0] + 1]
    if not 1 <= dim[0] <= 7 or min(sizes) < 1:
        raise Refusal("unreadable", f"impossible dimensions {dim} in the header; write the file again from its source")
    if len(sizes) < 3 or max(sizes[3:], default=1) > 1:
        found = "×".join(str(size) for size in sizes)
        raise Refusal("not-3d", f"the file holds {found} values, expected one 3D volume; split it first")
    if len(sizes) > 3:
        notes.append(f"{len(sizes) - 3} trailing dimensions of size 1 were dropped")
    return sizes[0], sizes[1], sizes[2]


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    dtype = data_type_codes.dtype[code] if code in data_type_codes.dtype else np.dtype("V")
    if dtype.names is not None:
        label = data_type_codes.label[code]
        raise Refusal("colour", f"the values are {label} colours, expected numbers; give the original volume")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refusal("undecodable", f"NIfTI data type {code} (complex, binary or unknown); expected real numbers")
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise Refusal("unreadable", f"bitpix is {int(header['bitpix'])} for data type {code}; write the file again")
    return np.dtype(dtype.newbyteorder(header.endianness))


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
        message = "qform_code and sform_code are both 0: the file does not say where it lies; set one"
        raise Refusal("no-geometry", message)
    unit = int(header["xyzt_units"]) & 7
    if unit not in _UNITS:
        raise Refusal("unreadable", f"spatial unit {unit} is not a NIfTI unit; write the file again")
    mm, meaning = _UNITS[unit]
    if meaning:
        notes.append(f"spatial unit {meaning}")
    qform = None if qcode == 0 else _qform(header, mm)
    if scode == 0 and qform is not None:
        return qform
    sform = np.array(header.get_sform(), dtype=np.float64)
    sform[:3] *= mm
    if qform is not None:
        _compare(Geometry(shape, qform), Geometry(shape, sform), (qcode, scode), notes)
    return sform


def _qform(header: Any, mm: float) -> NDArray[np.float64]:
    """As nibabel's ``get_qform``, which refuses a pixdim[0] of 0 and passes over a pixdim of 0.

    A turn that the stored numbers cannot tell from half a turn is one, as there: that of axes LIA, for instance.
    """
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
    rest = 1.0 - float(quaternion @ quaternion)
    is_half = rest < 3 * np.finfo(header["quatern_b"].dtype).eps
    rotation = quat2mat([0.0 if is_half else math.sqrt(rest), *quaternion])
    affine[:3, :3] = rotation * pixdim[1:4] * [1, 1, -1 if pixdim[0] == -1 else 1] * mm
    affine[:3, 3] = offsets * mm
    return affine


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


def save_nifti(array: ArrayLike, affine: ArrayLike, path: str | os.PathLike[str], *, description: str = "") -> None:
    """Write a volume as .nii or .nii.gz, whole or not at all.

    The sform (code 1, scanner) holds the affine; the qform holds it too unless the grid is sheared, which a qform
    cannot say. The same input gives the same bytes: no time and no name are stored.

    ``array``: 3D values, axes (i, j, k); booleans are written as uint8, float16 as float32. ``affine``: 4×4, voxel
    index → mm, RAS+. ``description``: at most 79 characters for the header's field ``descrip``, such as
    :func:`medseg.ingest.left_out.mark`. Raises ``UsageError`` if ``path`` ends in neither, or NIfTI does not know the
    type of the values; ``Refusal`` for what no reader should be given: ``not-3d``, ``singular-affine``,
    ``non-finite``; ``OSError`` if the file cannot be written.
    """
    target = Path(path)
    values = _storable(np.asarray(array))
    geometry = Geometry(values.shape, np.asarray(affine, dtype=np.float64))
    check_finite(values)
    with _nifti_file(target) as file:
        file.write(_header(values.dtype, geometry, description))
        _write(file, values)


def save_nifti_channels(
    volumes: Iterable[NDArray[np.uint8]],
    count: int,
    affine: ArrayLike,
    path: str | os.PathLike[str],
    *,
    scale: float,
    description: str = "",
) -> None:
    """Write volumes one after the other as one 4D file, axes (i, j, k, channel), in the memory of one of them.

    ``volumes`` are ``count`` arrays of one shape; ``scale`` is what their whole numbers are multiplied with when read
    (``scl_slope``). Everything else is as for :func:`save_nifti`.
    """
    with _nifti_file(Path(path)) as file:
        written = 0
        for volume in volumes:
            if written == 0:
                geometry = Geometry(volume.shape, np.asarray(affine, dtype=np.float64))
                file.write(_header(volume.dtype, geometry, description, channels=count, scale=scale))
            _write(file, volume)
            written += 1
        if written != count:
            raise ValueError(f"found {written} volumes, expected {count}")


@contextmanager
def _nifti_file(target: Path) -> Iterator[Any]:
    """What is written here appears under the name, packed if it says so, whole or not at all."""
    if not target.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"cannot write {target.name!r} as NIfTI: expected a name ending in .nii or .nii.gz")
    with atomic_path(target) as partial, partial.open("wb") as raw:
        if not target.name.endswith(".gz"):
            yield raw
            return
        with igzip.IGzipFile(filename="", mode="wb", compresslevel=_FASTEST, fileobj=raw, mtime=0) as packed:
            yield packed


def _write(handle: Any, values: NDArray[Any]) -> None:
    for k in range(0, values.shape[2], _SLICES_AT_ONCE):
        # NIfTI's order is Fortran's: the transposed part, made contiguous, is what stands in the file.
        handle.write(np.ascontiguousarray(values[:, :, k : k + _SLICES_AT_ONCE].T).data)


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    replacement = {"?": np.uint8, "e": np.float32}.get(values.dtype.char)
    if replacement is not None:
        return values.astype(replacement)
    if max(values.shape, default=0) > _LONGEST_AXIS:
        raise UsageError(f"cannot write shape {values.shape} as NIfTI-1: at most {_LONGEST_AXIS} voxels along an axis")
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        raise UsageError(f"cannot write values of type {values.dtype} as NIfTI: expected integers or floats")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _header(dtype: np.dtype[Any], geometry: Geometry, description: str, channels: int = 0, scale: float = 1.0) -> bytes:
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape((*geometry.shape, channels) if channels else geometry.shape)
    header.set_zooms((*geometry.spacing_mm, 1.0) if channels else geometry.spacing_mm)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.affine, code="scanner")
    if not geometry.is_sheared:
        header.set_qform(geometry.affine, code="scanner")
    header["magic"] = b"n+1"
    header["descrip"] = description.encode()
    header["vox_offset"] = _HEADER_AND_EXTENSION
    header["scl_slope"], header["scl_inter"] = scale, 0
    return bytes(header.binaryblock) + bytes(4)
