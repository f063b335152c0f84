"""Read NIfTI volumes, checked and fast, and write them whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header
from numpy.typing import ArrayLike, DTypeLike, NDArray

from medseg.errors import Refusal, UsageError
from medseg.files import atomic_path
from medseg.geometry import Geometry
from medseg.ingest import gzip_bytes
from medseg.ingest.elements import open_file
from medseg.ingest.limits import check_volume_size
from medseg.ingest.nifti_header import LONGEST_HEADER, NiftiHeader, parse_header

__all__ = ["check_finite", "read_nifti", "read_nifti_header", "save_nifti"]

_SPARE_BYTES: Final = 1024
_FASTEST: Final = 1
_HEADER_AND_EXTENSION: Final = 352
_PART_BYTES: Final = 16 * 1024 * 1024
_SLICES_AT_ONCE: Final = 16
_LONGEST_AXIS: Final = 32767

Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]


def read_nifti_header(path: str | os.PathLike[str]) -> NiftiHeader:
    """The checked header of a .nii, .nii.gz, .hdr or .img file; nothing else is read.

    Raises
    ------
    Refusal
        See :func:`medseg.ingest.nifti_header.parse_header`; ``truncated`` or ``unreadable`` if the size of an
        uncompressed file contradicts its header.
    OSError
        The file cannot be read.
    """
    header_path, data_path = _pair(Path(path))
    begin = gzip_bytes.read_begin(header_path, LONGEST_HEADER)
    header = parse_header(begin)
    if header.is_pair != (header_path != data_path):
        expected = "a second file (.img) with the values" if header.is_pair else "a single file (.nii)"
        raise Refusal("unreadable", f"the header's magic asks for {expected}; rename or convert the file")
    with open_file(data_path) as handle:
        if not gzip_bytes.is_gzip(handle.read(2)):
            _check_size(os.fstat(handle.fileno()).st_size, header)
    return header


def read_nifti(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Volume:
    """Read one volume.

    Parameters
    ----------
    path
        A .nii, .nii.gz, .hdr or .img file.
    dtype
        Type of the values; by default as stored (native byte order), float32 if they are scaled.

    Returns
    -------
    array, geometry, facts
        Axes (i, j, k) as stored, memory ordered as in the file.

    Raises
    ------
    Refusal
        What the header shows (see :func:`read_nifti_header`), ``truncated``, ``undecodable`` (a damaged or wrongly
        summed gzip stream), ``unreadable`` (more data than declared) or ``non-finite``.
    OSError
        The file cannot be read.
    """
    header = read_nifti_header(path)
    stored_type = header.dtype.newbyteorder("=")
    default = stored_type if header.scaling is None else np.dtype(np.float32)
    chosen = default if dtype is None else np.dtype(dtype)
    check_volume_size(header.geometry.shape, chosen.itemsize)
    values = np.empty(int(np.prod(header.geometry.shape)), chosen)
    _fill(values, header, _pair(Path(path))[1])
    facts: dict[str, Any] = {"kind": "nifti", "notes": header.notes, "scaling": header.scaling, "resampled": None}
    return values.reshape(header.geometry.shape, order="F"), header.geometry, facts


def _fill(values: NDArray[Any], header: NiftiHeader, path: Path) -> None:
    """Read, convert and check the values part by part, so that no second copy of the volume is held."""
    done, rest = 0, b""
    for part in _parts(path, header):
        buffer = rest + part if rest else part
        count = len(buffer) // header.dtype.itemsize
        rest = buffer[count * header.dtype.itemsize :]
        stored = np.frombuffer(buffer, header.dtype, count)
        target = values[done : done + count]
        _convert(stored, header.scaling, target)
        if header.dtype.kind == "f" or header.scaling is not None:
            check_finite(target if target.dtype.kind == "f" else stored)
        done += count


def _parts(path: Path, header: NiftiHeader) -> Any:
    with open_file(path) as handle:
        if gzip_bytes.is_gzip(handle.read(2)):
            yield from gzip_bytes.read_all(path, header.data_offset, header.data_bytes, _SPARE_BYTES)
            return
        _check_size(os.fstat(handle.fileno()).st_size, header)
        handle.seek(header.data_offset)
        left = header.data_bytes
        while left:
            part = handle.read(min(left, _PART_BYTES))
            if not part:
                raise Refusal("truncated", f"the file ended {left} bytes early while it was read; copy it again")
            left -= len(part)
            yield part


def _convert(stored: NDArray[Any], scaling: tuple[float, float] | None, target: NDArray[Any]) -> None:
    if scaling is None:
        target[...] = stored
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            target[...] = stored * np.float64(scaling[0]) + scaling[1]


def check_finite(values: NDArray[Any]) -> None:
    """Refuse NaN and infinity, which one normalisation would spread over the whole volume.

    Raises
    ------
    Refusal
        ``non-finite``
    """
    if values.dtype.kind != "f" or values.size == 0:
        return
    # Minimum and maximum together see NaN and both infinities, in two fast passes.
    if not np.isfinite([values.min(), values.max()]).all():
        count = int((~np.isfinite(values)).sum())
        raise Refusal(
            "non-finite", f"at least {count} voxels are NaN or infinite; replace them by a value that is meant"
        )


def _check_size(size: int, header: NiftiHeader) -> None:
    there = size - header.data_offset
    if there < header.data_bytes:
        raise Refusal("truncated", f"the file holds {max(there, 0)} of {header.data_bytes} bytes; copy it again")
    if there > header.data_bytes + _SPARE_BYTES:
        raise Refusal(
            "unreadable",
            f"the file holds {there} bytes of values, its header declares {header.data_bytes}; write it again",
        )


def _pair(path: Path) -> tuple[Path, Path]:
    """The files with the header and with the values; the same one for .nii."""
    name = path.name
    for header_end, data_end in ((".hdr", ".img"), (".hdr.gz", ".img.gz")):
        if name.endswith((header_end, data_end)):
            stem = name[: -len(header_end)]
            return path.with_name(stem + header_end), path.with_name(stem + data_end)
    return path, path


def save_nifti(array: ArrayLike, affine: ArrayLike, path: str | os.PathLike[str], *, description: str = "") -> None:
    """Write a volume as .nii or .nii.gz, whole or not at all.

    The sform (code 1, scanner) holds the affine; the qform holds it too unless the grid is sheared, which a qform
    cannot say. The same input gives the same bytes: no time and no name are stored.

    Parameters
    ----------
    array
        3D values, axes (i, j, k); booleans are written as uint8, float16 as float32.
    affine
        4×4, voxel index → mm, RAS+.
    path
        Ends in ``.nii`` or ``.nii.gz``.
    description
        At most 79 characters for the header's field ``descrip``, such as :func:`medseg.ingest.own.mark`.

    Raises
    ------
    UsageError
        Another suffix, or values of a type that NIfTI does not know.
    Refusal
        ``not-3d``, ``singular-affine`` or ``non-finite``: what no reader should be given.
    OSError
        The file cannot be written.
    """
    target = Path(path)
    values = _storable(np.asarray(array))
    geometry = Geometry(values.shape, np.asarray(affine, dtype=np.float64))
    check_finite(values)
    head = _header_bytes(values.dtype, geometry, description)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"cannot write {target.name!r} as NIfTI: expected a name ending in .nii or .nii.gz")
    with atomic_path(target) as partial, partial.open("wb") as raw:
        if not target.name.endswith(".gz"):
            _write(raw, head, values)
            return
        with igzip.IGzipFile(filename="", mode="wb", compresslevel=_FASTEST, fileobj=raw, mtime=0) as packed:
            _write(packed, head, values)


def _write(handle: Any, head: bytes, values: NDArray[Any]) -> None:
    handle.write(head)
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


def _header_bytes(dtype: np.dtype[Any], geometry: Geometry, description: str) -> bytes:
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    header.set_zooms(geometry.spacing_mm)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.affine, code="scanner")
    if not geometry.is_sheared:
        header.set_qform(geometry.affine, code="scanner")
    header["magic"] = b"n+1"
    header["descrip"] = description.encode()
    header["vox_offset"] = _HEADER_AND_EXTENSION
    header["scl_slope"], header["scl_inter"] = 1, 0
    return bytes(header.binaryblock) + bytes(4)
