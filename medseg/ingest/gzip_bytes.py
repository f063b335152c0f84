"""Compressed bytes, bounded in memory and checked to the last byte: gzip and zlib by ISA-L, and bzip2.

ISA-L is several times faster than zlib. A damaged stream, a wrong checksum and a missing end are errors, not shorter
data. Several members one after the other (as parallel compressors write them) are one stream (RFC 1952).
"""

from __future__ import annotations

import os
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, cast

from isal import igzip_lib
from isal.igzip_lib import DECOMP_GZIP, DECOMP_ZLIB, IgzipDecompressor

from medseg.errors import Refusal
from medseg.ingest.elements import open_file

__all__ = ["BZIP2", "GZIP", "ZLIB", "Codec", "is_gzip", "read_all", "read_begin", "read_start"]

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
