"""Values of an image file, from their bytes to an array: sized before they are read, checked while they are.

All formats with a header and one run of values end here (NIfTI, MetaImage, NRRD): raw, compressed, or as text. The
values are read, converted and checked part by part, so that no second copy of the volume is held. Gzip and zlib are
decompressed by ISA-L, several times faster than zlib. A damaged stream, a wrong checksum and a missing end are errors,
not shorter data. Several members one after the other, as parallel compressors write them, are one stream (RFC 1952).
"""

from __future__ import annotations

import io
import math
import os
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
from isal import igzip_lib
from isal.igzip_lib import DECOMP_GZIP, DECOMP_ZLIB, IgzipDecompressor
from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.dicom_elements import open_file
from medseg.resources import check_volume_size

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ERRORS: Final = (cast("type[Exception]", igzip_lib.IsalError), EOFError)  # the stub declares an instance
_CHUNK: Final = 1024 * 1024
_PART_BYTES: Final = 16 * 1024 * 1024
_MOST_SPARE_BYTES: Final = 1024
_TEXT_BYTES: Final = 1024 * 1024
_LONGEST_NUMBER: Final = 40
"""Characters of one number written as text; a double takes 24."""


_CODECS: Final[dict[str, tuple[Callable[[], IgzipDecompressor | BZ2Decompressor], bytes]]] = {
    "gzip": (lambda: IgzipDecompressor(flag=DECOMP_GZIP), _GZIP_MAGIC),
    "zlib": (lambda: IgzipDecompressor(flag=DECOMP_ZLIB), b""),
    "bzip2": (BZ2Decompressor, b"BZh"),
}
"""What decompresses a member, and how a further member begins (empty: there is none)."""


@dataclass(frozen=True)
class StoredValues:
    """Where the values of one volume stand, and how."""

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    """``shape``, ``dtype``: number of voxels along (i, j, k), of which i varies fastest; type of the stored values, in
    their byte order."""
    offset: int  # where they begin in the file, in bytes; for a compressed run, where the run begins
    encoding: Encoding = "raw"
    skip: int = 0  # bytes to leave out at the begin of a decompressed run
    scaling: tuple[float, float] | None = None
    """Slope and intercept that turn stored values into real ones; ``None`` where there is none."""

    @property
    def data_bytes(self) -> int:
        """Number of bytes of the values, decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def spare_bytes(self) -> int:
        """How much may follow the values: padding, but not a further slice that the header does not declare."""
        return min(_MOST_SPARE_BYTES, self.data_bytes // self.shape[2] - 1)


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says, checked: the grid (mm, RAS+), its values, what is worth knowing."""

    geometry: Geometry
    stored: StoredValues
    notes: tuple[str, ...]


def is_gzip(path: str | os.PathLike[str], offset: int = 0) -> bool:
    """Whether a gzip stream begins in a file at ``offset``."""
    with open_file(path) as handle:
        handle.seek(offset)
        return handle.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def read_begin(path: str | os.PathLike[str], length: int) -> bytes:
    """The first ``length`` bytes of a file, decompressed if it is gzip; fewer if it is shorter."""
    with open_file(path) as handle:
        begin = handle.read(max(length, 4096))
        if not begin.startswith(_GZIP_MAGIC):
            return begin[:length]
        stream, found = IgzipDecompressor(flag=DECOMP_GZIP), b""
        while begin and len(found) < length and not stream.eof:
            found += _decompressed(stream, begin, length - len(found), "gzip")
            begin = handle.read(4096) if stream.needs_input else b""
        return found


def read_stored(stored: StoredValues, dtype: DTypeLike | None = None) -> NDArray[np.generic]:
    """The values, axes (i, j, k), memory ordered as in the file.

    By default of the stored type in native byte order, or float32 if the values are scaled. Refused are ``too-large``,
    ``truncated``, ``unreadable`` (more data than declared), ``undecodable`` and ``non-finite``; a file that cannot be
    read is an OSError.
    """
    default = stored.dtype.newbyteorder("=") if stored.scaling is None else np.dtype(np.float32)
    chosen = default if dtype is None else np.dtype(dtype)
    check_volume_size(stored.shape, max(chosen.itemsize, stored.dtype.itemsize))
    check_stored_size(stored)
    values = np.empty(math.prod(stored.shape), chosen)
    _fill(values, stored)
    return values.reshape(stored.shape, order="F")


def check_stored_size(stored: StoredValues) -> None:
    """Compare the size of the file with what its header declares (``truncated``, ``unreadable``); nothing is read."""
    there = os.stat(stored.path).st_size - stored.offset  # noqa: PTH116 - bytes of odd names survive
    count = math.prod(stored.shape)
    least = {"raw": stored.data_bytes, "hex": 2 * stored.data_bytes, "text": 2 * count - 1}.get(stored.encoding, 1)
    if there < least:
        raise Refusal("truncated", f"the file holds {max(there, 0)} of {least} bytes of values; copy it again")
    if stored.encoding == "raw" and there > stored.data_bytes + stored.spare_bytes:
        message = f"the file holds {there} bytes of values, its header declares {stored.data_bytes}; write it again"
        raise Refusal("unreadable", message)


def _fill(values: NDArray[Any], stored: StoredValues) -> None:
    readers = {"raw": _raw_parts, "text": _text_parts, "hex": _hex_parts}
    done, rest = 0, b""
    with open_file(stored.path) as handle:
        handle.seek(stored.offset)
        for part in readers.get(stored.encoding, _decompressed_parts)(stored, handle):
            buffer = rest + part if rest else part
            count = len(buffer) // stored.dtype.itemsize
            rest = buffer[count * stored.dtype.itemsize :]
            found = np.frombuffer(buffer, stored.dtype, count)
            target = values[done : done + count]
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused
                scaling = stored.scaling
                target[...] = found if scaling is None else found * np.float64(scaling[0]) + scaling[1]
            if stored.dtype.kind == "f" or stored.scaling is not None:
                check_finite(target if target.dtype.kind == "f" else found)
            done += count


def _raw_parts(stored: StoredValues, handle: io.FileIO) -> Iterator[bytes]:
    left = stored.data_bytes
    while left:
        part = handle.read(min(left, _PART_BYTES))
        if not part:
            raise Refusal("truncated", f"the file ended {left} bytes early while it was read; copy it again")
        left -= len(part)
        yield part


def _decompressed_parts(stored: StoredValues, handle: io.FileIO) -> Iterator[bytes]:
    """The bytes of the values; what follows them is checked, too."""
    position, length = 0, stored.data_bytes
    end = stored.skip + length
    for part in _members(stored.encoding, handle, end + stored.spare_bytes + 1):
        low, high = max(stored.skip - position, 0), min(end - position, len(part))
        position += len(part)
        if low < high:
            yield part[low:high]
        if position > end + stored.spare_bytes:
            message = f"the file holds more than the {length} bytes of values its header declares; write it again"
            raise Refusal("unreadable", message)
    if position < end:
        raise Refusal("truncated", f"the file holds {max(position - stored.skip, 0)} of {length} bytes; copy it again")


def _members(encoding: Encoding, handle: io.FileIO, most: int) -> Iterator[bytes]:
    """Decompressed parts of all members, at most ``most`` bytes and one part more."""
    begin, magic = _CODECS[encoding]
    stream = begin()
    packed, produced = handle.read(_CHUNK), 0
    while produced < most:
        part = _decompressed(stream, packed, min(_CHUNK, most - produced), encoding)
        produced += len(part)
        if part:
            yield part
        if stream.eof:
            packed = stream.unused_data
            if len(packed) < len(magic):
                packed += handle.read(_CHUNK)
            if not magic or not packed.startswith(magic):  # the end, or padding after it
                return
            stream = begin()
        elif stream.needs_input:
            packed = handle.read(_CHUNK)
            if not packed:
                raise Refusal("truncated", "the compressed stream ends early; copy the file again")
        else:
            packed = b""


def _decompressed(stream: IgzipDecompressor | BZ2Decompressor, packed: bytes, most: int, encoding: Encoding) -> bytes:
    try:
        return stream.decompress(packed, most)
    except (*_ERRORS, OSError, ValueError) as error:  # bz2 raises the last two for damage
        message = f"the {encoding} stream is damaged ({error}); copy the file again from its source"
        raise Refusal("undecodable", message) from error


def _text_parts(stored: StoredValues, handle: io.FileIO) -> Iterator[bytes]:
    """Numbers between blanks, part by part: as objects they take fifty times the room of their values."""
    count, expected, rest = 0, math.prod(stored.shape), b""
    while rest or count < expected:
        part = handle.read(_TEXT_BYTES)
        numbers = (rest + part).split()
        rest = numbers.pop() if part and not part[-1:].isspace() and numbers else b""
        count += len(numbers)
        if count > expected or len(rest) > _LONGEST_NUMBER:
            break
        if numbers:
            yield _from_text(numbers, stored.dtype)
        elif not part:
            message = f"{count} numbers stand in the file, its header declares {expected}; copy it again"
            raise Refusal("truncated", message)
    if rest or count > expected or handle.read(_MOST_SPARE_BYTES).strip():
        raise Refusal("unreadable", f"more than {expected} numbers stand in the file; write it again")


def _from_text(numbers: list[bytes], dtype: np.dtype[Any]) -> bytes:
    try:
        return np.array([number.decode("ascii") for number in numbers]).astype(dtype).tobytes()
    except (ValueError, OverflowError) as error:
        raise Refusal("undecodable", f"a value is no number of type {dtype}; write the file again") from error


def _hex_parts(stored: StoredValues, handle: io.FileIO) -> Iterator[bytes]:
    most = 3 * stored.data_bytes + _MOST_SPARE_BYTES
    written = handle.read(most + 1)
    try:
        decoded = bytes.fromhex(written.decode("ascii"))
    except ValueError as error:
        raise Refusal("undecodable", "the values are not pairs of hexadecimal digits; write the file again") from error
    if len(decoded) != stored.data_bytes or len(written) > most:
        code: Literal["truncated", "unreadable"] = "truncated" if len(decoded) < stored.data_bytes else "unreadable"
        raise Refusal(code, f"{len(decoded)} bytes of values, its header declares {stored.data_bytes}; write it again")
    yield decoded


def check_finite(values: NDArray[Any]) -> None:
    """Refuse NaN and infinity (``non-finite``), which one normalisation would spread over the whole volume."""
    if values.dtype.kind != "f" or values.size == 0:
        return
    # Minimum and maximum together see NaN and both infinities, in two fast passes.
    if not np.isfinite([values.min(), values.max()]).all():
        count = int((~np.isfinite(values)).sum())
        message = f"at least {count} voxels are NaN or infinite; replace them by a value that is meant"
        raise Refusal("non-finite", message)
