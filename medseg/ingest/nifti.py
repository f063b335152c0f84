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
from medseg.ingest import stored_values as gzip_bytes
from medseg.ingest.nifti_header import LONGEST_HEADER, NiftiHeader, parse_header
from medseg.ingest.record import data_path, pair_of
from medseg.ingest.stored_values import StoredValues, check_finite, check_stored_size, read_stored

_FASTEST: Final = 1
_HEADER_AND_EXTENSION: Final = 352
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
    header_file, data_file = _both_halves(path)
    header = parse_header(gzip_bytes.read_begin(header_file, LONGEST_HEADER))
    if header.is_pair != (header_file != data_file):
        expected = "a second file (.img) with the values" if header.is_pair else "a single file (.nii)"
        raise Refusal("unreadable", f"the header's magic asks for {expected}; rename or convert the file")
    check_stored_size(data_file, _stored(path, header))
    return header


def _both_halves(path: str | os.PathLike[str]) -> tuple[str, str]:
    header, data = pair_of(path) or (os.fspath(path), os.fspath(path))
    for half, other in ((header, data), (data, header)):
        if half != other and not os.path.exists(half):  # noqa: PTH110 - names that are not UTF-8 survive
            raise Refusal(
                "unreadable",
                f"{_name(other)} is one half of a pair, and {_name(half)} is not beside it; copy both files",
            )
    return header, data


def _name(path: str) -> str:
    return os.path.basename(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # noqa: PTH119


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
    values = read_stored(data_path(path), _stored(path, header), dtype)
    facts: dict[str, Any] = {"kind": "nifti", "notes": header.notes, "scaling": header.scaling, "resampled": None}
    return values, header.geometry, facts


def _stored(path: str | os.PathLike[str], header: NiftiHeader) -> StoredValues:
    """Where the values are; in a compressed file, vox_offset counts decompressed bytes."""
    packed = gzip_bytes.is_gzip(gzip_bytes.read_start(data_path(path)))
    return StoredValues(
        header.geometry.shape,
        header.dtype,
        offset=0 if packed else header.data_offset,
        encoding="gzip" if packed else "raw",
        skip=header.data_offset if packed else 0,
        scaling=header.scaling,
    )


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
        At most 79 characters for the header's field ``descrip``, such as :func:`medseg.ingest.left_out.mark`.

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
