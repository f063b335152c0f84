"""Values of an image file, from their bytes to an array: sized before they are read, checked while they are.

All formats with a header and one run of values end here (NIfTI, MetaImage, NRRD): raw, compressed, or as text. The
values are read, converted and checked part by part, so that no second copy of the volume is held.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.ingest import gzip_bytes
from medseg.ingest.elements import open_file
from medseg.ingest.limits import check_volume_size

__all__ = ["Encoding", "StoredValues", "check_finite", "check_stored_size", "read_stored"]

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]

_CODECS: Final = {"gzip": gzip_bytes.GZIP, "zlib": gzip_bytes.ZLIB, "bzip2": gzip_bytes.BZIP2}
_PART_BYTES: Final = 16 * 1024 * 1024
_MOST_SPARE_BYTES: Final = 1024
_LONGEST_NUMBER: Final = 40
"""Characters of one number written as text, with its separator; a double takes 25."""


@dataclass(frozen=True)
class StoredValues:
    """Where the values of one volume stand in a file, and how.

    Attributes
    ----------
    shape
        Number of voxels along (i, j, k); i varies fastest.
    dtype
        Type of the stored values, in their byte order.
    offset
        Where they begin in the file, in bytes; for a compressed run, where the run begins.
    encoding
        How they are written.
    skip
        Bytes to leave out at the begin of a decompressed run.
    scaling
        Slope and intercept that turn stored values into real ones; ``None`` where there is none.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    encoding: Encoding = "raw"
    skip: int = 0
    scaling: tuple[float, float] | None = None

    @property
    def data_bytes(self) -> int:
        """Number of bytes of the values, decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def spare_bytes(self) -> int:
        """How much may follow the values: padding, but not a further slice that the header does not declare."""
        return min(_MOST_SPARE_BYTES, self.data_bytes // self.shape[2] - 1)


def read_stored(
    path: str | os.PathLike[str], stored: StoredValues, dtype: DTypeLike | None = None
) -> NDArray[np.generic]:
    """The values, axes (i, j, k), memory ordered as in the file.

    Parameters
    ----------
    path
        The file that holds the values.
    stored
        Where and how.
    dtype
        Type of the result; by default as stored (native byte order), float32 if the values are scaled.

    Raises
    ------
    Refusal
        ``too-large``, ``truncated``, ``unreadable`` (more data than declared), ``undecodable`` or ``non-finite``.
    OSError
        The file cannot be read.
    """
    default = stored.dtype.newbyteorder("=") if stored.scaling is None else np.dtype(np.float32)
    chosen = default if dtype is None else np.dtype(dtype)
    check_volume_size(stored.shape, max(chosen.itemsize, stored.dtype.itemsize))
    check_stored_size(path, stored)
    values = np.empty(math.prod(stored.shape), chosen)
    _fill(values, stored, _parts(path, stored))
    return values.reshape(stored.shape, order="F")


def check_stored_size(path: str | os.PathLike[str], stored: StoredValues) -> None:
    """Compare the size of the file with what its header declares; nothing is read.

    Raises
    ------
    Refusal
        ``truncated`` or ``unreadable``.
    OSError
        The file cannot be read.
    """
    there = os.stat(path).st_size - stored.offset  # noqa: PTH116 - bytes of odd names survive
    least, most = _bounds(stored)
    if there < least:
        raise Refusal("truncated", f"the file holds {max(there, 0)} of {least} bytes of values; copy it again")
    if there > most:
        raise Refusal(
            "unreadable",
            f"the file holds {there} bytes of values, its header declares {stored.data_bytes}; write it again",
        )


def _bounds(stored: StoredValues) -> tuple[int, float]:
    """The least and the most bytes that the encoded values can take."""
    if stored.encoding == "raw":
        return stored.data_bytes, stored.data_bytes + stored.spare_bytes
    if stored.encoding == "hex":
        return 2 * stored.data_bytes, math.inf
    if stored.encoding == "text":
        return 2 * math.prod(stored.shape) - 1, math.inf
    return 1, math.inf


def _parts(path: str | os.PathLike[str], stored: StoredValues) -> Iterator[bytes]:
    if stored.encoding == "raw":
        return _raw_parts(path, stored)
    if stored.encoding == "text":
        return iter((_from_text(_written(path, stored, _LONGEST_NUMBER), stored),))
    if stored.encoding == "hex":
        return iter((_from_hex(_written(path, stored, 3 * stored.dtype.itemsize), stored),))
    return gzip_bytes.read_all(
        path,
        stored.skip,
        stored.data_bytes,
        stored.spare_bytes,
        offset=stored.offset,
        codec=_CODECS[stored.encoding],
    )


def _raw_parts(path: str | os.PathLike[str], stored: StoredValues) -> Iterator[bytes]:
    with open_file(path) as handle:
        handle.seek(stored.offset)
        left = stored.data_bytes
        while left:
            part = handle.read(min(left, _PART_BYTES))
            if not part:
                raise Refusal("truncated", f"the file ended {left} bytes early while it was read; copy it again")
            left -= len(part)
            yield part


def _written(path: str | os.PathLike[str], stored: StoredValues, bytes_per_value: int) -> bytes:
    """What stands in a file of readable values, at most ``bytes_per_value`` for each."""
    most = math.prod(stored.shape) * bytes_per_value + _MOST_SPARE_BYTES
    with open_file(path) as handle:
        handle.seek(stored.offset)
        written = handle.read(most + 1)
    if len(written) > most:
        raise Refusal("unreadable", f"more than {most} bytes stand for {math.prod(stored.shape)} values; write it anew")
    return written


def _from_text(written: bytes, stored: StoredValues) -> bytes:
    numbers = written.split()
    count = math.prod(stored.shape)
    if len(numbers) != count:
        code: Literal["truncated", "unreadable"] = "truncated" if len(numbers) < count else "unreadable"
        raise Refusal(code, f"{len(numbers)} numbers stand in the file, its header declares {count}; write it again")
    try:
        return np.array([number.decode("ascii") for number in numbers]).astype(stored.dtype).tobytes()
    except (ValueError, OverflowError) as error:
        raise Refusal("undecodable", f"a value is no number of type {stored.dtype}; write the file again") from error


def _from_hex(written: bytes, stored: StoredValues) -> bytes:
    try:
        decoded = bytes.fromhex(written.decode("ascii"))
    except ValueError as error:
        raise Refusal("undecodable", "the values are not pairs of hexadecimal digits; write the file again") from error
    if len(decoded) != stored.data_bytes:
        code: Literal["truncated", "unreadable"] = "truncated" if len(decoded) < stored.data_bytes else "unreadable"
        raise Refusal(code, f"{len(decoded)} bytes of values, its header declares {stored.data_bytes}; write it again")
    return decoded


def _fill(values: NDArray[Any], stored: StoredValues, parts: Iterator[bytes]) -> None:
    done, rest = 0, b""
    for part in parts:
        buffer = rest + part if rest else part
        count = len(buffer) // stored.dtype.itemsize
        rest = buffer[count * stored.dtype.itemsize :]
        found = np.frombuffer(buffer, stored.dtype, count)
        target = values[done : done + count]
        _convert(found, stored.scaling, target)
        if stored.dtype.kind == "f" or stored.scaling is not None:
            check_finite(target if target.dtype.kind == "f" else found)
        done += count


def _convert(found: NDArray[Any], scaling: tuple[float, float] | None, target: NDArray[Any]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused
        target[...] = found if scaling is None else found * np.float64(scaling[0]) + scaling[1]


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
