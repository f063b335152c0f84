"""Values of image files as stored: raw or compressed, gzip by ISA-L, no byte more than promised.

Compressed bytes, bounded in memory and checked to the last byte: gzip and zlib by ISA-L, and bzip2.

ISA-L is several times faster than zlib. A damaged stream, a wrong checksum and a missing end are errors, not shorter
data. Several members one after the other (as parallel compressors write them) are one stream (RFC 1952).

Values of an image file, from their bytes to an array: sized before they are read, checked while they are.

All formats with a header and one run of values end here (NIfTI, MetaImage, NRRD): raw, compressed, or as text. The
values are read, converted and checked part by part, so that no second copy of the volume is held.
"""

from __future__ import annotations

import math
import os
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
from isal import igzip_lib
from isal.igzip_lib import DECOMP_GZIP, DECOMP_ZLIB, IgzipDecompressor
from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.ingest.dicom_elements import open_file
from medseg.resources import check_volume_size

_MAGIC: Final = b"\x1f\x8b"
_CHUNK: Final = 1024 * 1024
_ERRORS: Final = (cast("type[Exception]", igzip_lib.IsalError), EOFError)  # the stub declares an instance


class Codec(NamedTuple):
    """One kind of compression.

    Attributes
    ----------
    name
        For messages.
    stream
        Makes the decompressor of one member.
    magic
        First bytes of a member; empty where only one member is allowed.
    """

    name: str
    stream: Callable[[], IgzipDecompressor | BZ2Decompressor]
    magic: bytes


GZIP: Final = Codec("gzip", lambda: IgzipDecompressor(flag=DECOMP_GZIP), _MAGIC)
ZLIB: Final = Codec("zlib", lambda: IgzipDecompressor(flag=DECOMP_ZLIB), b"")
BZIP2: Final = Codec("bzip2", BZ2Decompressor, b"BZh")


def is_gzip(begin: bytes) -> bool:
    """Whether these are the first bytes of a gzip stream."""
    return begin[:2] == _MAGIC


def read_start(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file as they are, enough for :func:`is_gzip`."""
    with open_file(path) as handle:
        return handle.read(len(_MAGIC))


def read_begin(path: str | os.PathLike[str], length: int) -> bytes:
    """The first ``length`` bytes of a file, decompressed if it is gzip; fewer if it is shorter.

    Raises
    ------
    Refusal
        ``undecodable`` if the compressed stream is damaged.
    OSError
        The file cannot be read.
    """
    with open_file(path) as handle:
        begin = handle.read(max(length, 4096))
        if not is_gzip(begin):
            return begin[:length]
        stream = IgzipDecompressor(flag=DECOMP_GZIP)
        found = b""
        try:
            while begin and len(found) < length and not stream.eof:
                found += stream.decompress(begin, length - len(found))
                begin = handle.read(4096) if stream.needs_input else b""
        except _ERRORS as error:
            raise _damaged(error) from error
        return found


def read_all(
    path: str | os.PathLike[str], start: int, length: int, spare: int, *, offset: int = 0, codec: Codec = GZIP
) -> Iterator[bytes]:
    """The ``length`` bytes from ``start`` on, in parts; what follows is checked, and may be ``spare`` bytes long.

    Parameters
    ----------
    path
        The file.
    start, length, spare
        In the decompressed stream.
    offset
        Where the compressed stream begins in the file.
    codec
        How it is compressed.

    Raises
    ------
    Refusal
        ``truncated`` if the stream ends before, ``unreadable`` if it holds more, ``undecodable`` if it is damaged.
    OSError
        The file cannot be read.
    """
    position, end = 0, start + length
    for part in _members(path, offset, end + spare + 1, codec):
        low, high = max(start - position, 0), min(end - position, len(part))
        position += len(part)
        if low < high:
            yield part[low:high]
        if position > end + spare:
            raise Refusal(
                "unreadable",
                f"the file holds more than the {length} bytes of values its header declares; write it again",
            )
    if position < end:
        raise Refusal("truncated", f"the file holds {max(position - start, 0)} of {length} bytes; copy it again")


def _members(path: str | os.PathLike[str], offset: int, most: int, codec: Codec) -> Iterator[bytes]:
    """Decompressed parts of all members, at most ``most`` bytes and one part more."""
    with open_file(path) as handle:
        handle.seek(offset)
        stream = codec.stream()
        packed, produced = handle.read(_CHUNK), 0
        while produced < most:
            part = _decompressed(stream, packed, min(_CHUNK, most - produced), codec)
            produced += len(part)
            if part:
                yield part
            if stream.eof:
                packed = stream.unused_data
                if len(packed) < len(codec.magic):
                    packed += handle.read(_CHUNK)
                if not codec.magic or not packed.startswith(codec.magic):  # the end, or padding after it
                    return
                stream = codec.stream()
            elif stream.needs_input:
                packed = handle.read(_CHUNK)
                if not packed:
                    raise Refusal("truncated", "the compressed stream ends early; copy the file again")
            else:
                packed = b""


def _decompressed(stream: IgzipDecompressor | BZ2Decompressor, packed: bytes, most: int, codec: Codec) -> bytes:
    try:
        return stream.decompress(packed, most)
    except (*_ERRORS, OSError, ValueError) as error:  # bz2 raises the last two for damage
        raise _damaged(error, codec) from error


def _damaged(error: Exception, codec: Codec = GZIP) -> Refusal:
    return Refusal("undecodable", f"the {codec.name} stream is damaged ({error}); copy the file again from its source")


Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]

_CODECS: Final = {"gzip": GZIP, "zlib": ZLIB, "bzip2": BZIP2}
_PART_BYTES: Final = 16 * 1024 * 1024
_MOST_SPARE_BYTES: Final = 1024
_TEXT_BYTES: Final = 1024 * 1024
_LONGEST_NUMBER: Final = 40
"""Characters of one number written as text; a double takes 24."""


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
        return _text_parts(path, stored)
    if stored.encoding == "hex":
        return iter((_from_hex(path, stored),))
    return read_all(
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


def _text_parts(path: str | os.PathLike[str], stored: StoredValues) -> Iterator[bytes]:
    """Numbers between blanks, part by part: as objects they take fifty times the room of their values."""
    count, wanted, rest = 0, math.prod(stored.shape), b""
    with open_file(path) as handle:
        handle.seek(stored.offset)
        while rest or count < wanted:
            part = handle.read(_TEXT_BYTES)
            numbers = (rest + part).split()
            rest = numbers.pop() if part and not part[-1:].isspace() and numbers else b""
            count += len(numbers)
            if count > wanted or len(rest) > _LONGEST_NUMBER:
                raise Refusal("unreadable", f"more than {wanted} numbers stand in the file; write it again")
            if numbers:
                yield _from_text(numbers, stored.dtype)
            elif not part:
                break
        if handle.read(_MOST_SPARE_BYTES).strip():
            raise Refusal("unreadable", f"more than {wanted} numbers stand in the file; write it again")
    if count < wanted:
        raise Refusal("truncated", f"{count} numbers stand in the file, its header declares {wanted}; copy it again")


def _from_text(numbers: list[bytes], dtype: np.dtype[Any]) -> bytes:
    try:
        return np.array([number.decode("ascii") for number in numbers]).astype(dtype).tobytes()
    except (ValueError, OverflowError) as error:
        raise Refusal("undecodable", f"a value is no number of type {dtype}; write the file again") from error


def _from_hex(path: str | os.PathLike[str], stored: StoredValues) -> bytes:
    most = 3 * stored.data_bytes + _MOST_SPARE_BYTES
    with open_file(path) as handle:
        handle.seek(stored.offset)
        written = handle.read(most + 1)
    try:
        decoded = bytes.fromhex(written.decode("ascii"))
    except ValueError as error:
        raise Refusal("undecodable", "the values are not pairs of hexadecimal digits; write the file again") from error
    if len(decoded) != stored.data_bytes or len(written) > most:
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
