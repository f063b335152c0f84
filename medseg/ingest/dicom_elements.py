"""A walk over the data elements of a DICOM file that reads only what is asked for and trusts no length.

Written for speed (a scan of a hospital's archive is bound by this loop) and for hostile input: a length is
compared with the bytes that are there before anything is allocated. What it cannot parse it reports; it never
guesses. Source: DICOM PS3.5 sections 7.1 (data elements) and 7.5 (nested data sets), PS3.10 section 7.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

MAX_HEADER_BYTES: Final = 64 * 1024 * 1024
"""Largest header that is read; real ones are some kilobytes, enhanced multi-frame ones a few megabytes."""

DEFLATED: Final = "1.2.840.10008.1.2.1.99"
IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
"""Transfer syntaxes, and those of them whose pixel data are not compressed by themselves."""

_TRANSFER_SYNTAX: Final = 0x00020010
_MEDIA_SOP_CLASS: Final = 0x00020002
_META_WANTED: Final = frozenset((_TRANSFER_SYNTAX, _MEDIA_SOP_CLASS))
_LAST_OF_META: Final = 0x0002FFFF
FIRST_PIXEL_TAG: Final = 0x7FE00008
_LAST_PIXEL_TAG: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD

_FUNCTIONAL_GROUPS: Final = (0x52009229, 0x52009230)

_UNDEFINED: Final = 0xFFFFFFFF
_LONGEST_WANTED: Final = 64 * 1024
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FIRST_READ: Final = 16 * 1024
_FIRST_ELEMENT_BYTES: Final = 132
_DEEPEST_NESTING: Final = 32
_HEADS: Final = {
    order: (struct.Struct(order + "HH2sH"), struct.Struct(order + "HHI"), struct.Struct(order + "I")) for order in "<>"
}
"""Begin of an element with a short length, of one without value representation, and a long length, by byte order."""
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_VRS: Final = _LONG_VRS | _SHORT_VRS
"""Value representations, whose lengths have four or two bytes (PS3.5 section 7.1.2)."""


@dataclass
class Elements:
    """What one walk found.

    Positions are in the file; those of the pixel data of a deflated file in the inflated data set.
    """

    values: dict[int, bytes] = field(default_factory=dict)
    """Raw value of each wanted element that is present, by tag; empty where it is longer than 64 KiB."""
    transfer_syntax: str = IMPLICIT
    """UID from the file meta information; for files without one, the syntax that their bytes show."""
    has_meta: bool = True
    """The file begins as DICOM files must (PS3.10 section 7.1): by the preamble, or at least by the group 2."""
    file_size: int = 0
    data_set_offset: int = 0
    pixel_tag: int = 0
    pixel_offset: int = 0
    pixel_length: int | None = None
    """``pixel_tag``, ``pixel_offset``, ``pixel_length``: pixel data element: 0 if absent, where its value begins, its
    length (``None`` for encapsulated data)."""
    header: bytes = b""
    explicit: bool = True
    """``header``, ``explicit``: the data set's bytes before the value of the pixel data, and whether they carry value
    representations."""
    truncated: bool = False
    malformed: str = ""
    """``truncated``, ``malformed``: the file ends inside an element before the pixel data; why else the walk had to
    stop."""
    has_functional_groups: bool = False
    """Shared or per-frame functional groups are present: an enhanced multi-frame object."""

    @property
    def byte_order(self) -> str:
        """``">"`` or ``"<"``, as :mod:`struct` and NumPy write it."""
        return ">" if self.transfer_syntax == BIG_ENDIAN else "<"


def _open(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Descriptor and size of a regular file; a pipe or a device is never opened, since that may block or act."""
    found = os.stat(path)  # noqa: PTH116 - the hot path of a scan
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"not a regular file: {os.fspath(path)!r}")
    return os.open(path, _FLAGS), found.st_size


def open_file(path: str | os.PathLike[str]) -> io.FileIO:
    """A regular file, opened for unbuffered reading; anything else that lies at ``path`` is an OSError."""
    return io.FileIO(_open(path)[0], "rb")


def read_elements(path: str | os.PathLike[str], wanted: AbstractSet[int]) -> Elements | None:
    """Walk the header of one file; ``None`` if it is not DICOM."""
    descriptor, size = _open(path)
    try:
        source: _FileBytes | _InflatedBytes = _FileBytes(descriptor, size)
        source.grow(_FIRST_READ)
        start = first_element(source.buffer)
        if start is None:
            return None
        found = Elements(file_size=size)
        meta = _Walk(source, found, _META_WANTED, _LAST_OF_META)
        found.data_set_offset = position = meta.run(start)
        syntax = found.values.pop(_TRANSFER_SYNTAX, b"").rstrip(b"\0 ").decode("ascii", "replace")
        found.has_meta = start > 0 or position > 0
        found.transfer_syntax = syntax or _shown_syntax(source.buffer[position : position + 6])
        if found.transfer_syntax == DEFLATED:
            source, position = _InflatedBytes(descriptor, position, MAX_HEADER_BYTES), 0
            source.grow(_FIRST_READ)
        if not found.truncated:
            walk = _Walk(source, found, wanted, _LAST_PIXEL_TAG, found.byte_order)
            walk.run(position)
            found.explicit = walk.explicit
        found.header = source.buffer[position : found.pixel_offset or None]
        return found
    finally:
        os.close(descriptor)


def may_be_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as DICOM files do; no more than that is read."""
    with open_file(path) as handle:
        return first_element(handle.read(_FIRST_ELEMENT_BYTES) or b"") is not None


def inflate(path: str | os.PathLike[str], offset: int, end: int) -> bytes:
    """The first ``end`` bytes of the deflated data set that begins at ``offset``; fewer if it is shorter."""
    descriptor, _ = _open(path)
    try:
        source = _InflatedBytes(descriptor, offset, end)
        source.grow(end)
        return source.buffer[:end]
    finally:
        os.close(descriptor)


def first_element(buffer: bytes) -> int | None:
    """Where the first element begins: after the preamble, or at 0 in files that lack one."""
    if buffer[128:132] == b"DICM":
        return 132
    # Without preamble the file must begin with an element of group 2, 4 (a directory) or 8; which one, differs.
    if len(buffer) < 16:
        return None
    has_vr = buffer[4:6] in _VRS
    if buffer[:2] in (b"\x02\0", b"\0\x08"):  # the first is always explicit (PS3.10 section 7.1)
        return 0 if has_vr else None
    if buffer[:2] not in (b"\x04\0", b"\x08\0"):
        return None
    return 0 if has_vr or buffer[6:8] == b"\0\0" else None


def _shown_syntax(head: bytes) -> str:
    """The native syntax that the first bytes of a data set show, where no file meta information names one."""
    if head[4:6] not in _VRS:
        return IMPLICIT
    return BIG_ENDIAN if head[:1] == b"\0" else EXPLICIT


class _FileBytes:
    """The begin of a file, read in growing steps."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size, self.buffer = descriptor, size, b""

    def grow(self, end: int) -> bool:
        """Read on until ``end``; false if the file or the limit ends before."""
        aim = min(self._size, MAX_HEADER_BYTES, max(end, 4 * len(self.buffer)))
        if aim > len(self.buffer):
            self.buffer += os.pread(self._descriptor, aim - len(self.buffer), len(self.buffer))
        return len(self.buffer) >= end


class _InflatedBytes:
    """The begin of a deflated data set; what it expands to is bounded by what is asked for, and by ``most`` bytes."""

    def __init__(self, descriptor: int, offset: int, most: int) -> None:
        self._descriptor, self._offset, self._most, self.buffer = descriptor, offset, most, b""
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def grow(self, end: int) -> bool:
        """Inflate on until ``end``; false if the data end before or are damaged."""
        parts, length, aim = [self.buffer], len(self.buffer), min(end, self._most)
        try:
            while length < aim and not self._inflater.eof:
                packed = self._inflater.unconsumed_tail or self._read()
                part = self._inflater.decompress(packed, aim - length) if packed else self._inflater.flush()
                parts.append(part)
                length += len(part)
                if not packed:
                    break
        except zlib.error:
            pass  # the length tells: what was inflated so far is too short
        self.buffer = b"".join(parts)
        return length >= end

    def _read(self) -> bytes:
        part = os.pread(self._descriptor, 1 << 16, self._offset)
        self._offset += len(part)
        return part


class _OutOfBytesError(Exception):
    """The element at the first position needs bytes up to the second, which were not read yet."""


class _MalformedError(Exception):
    """The bytes are not a sequence of data elements."""


class _Walk:
    """One pass over elements in rising order of tags, up to the tag ``last``."""

    def __init__(
        self,
        source: _FileBytes | _InflatedBytes,
        found: Elements,
        wanted: AbstractSet[int],
        last: int,
        byte_order: str = "<",
    ) -> None:
        self._source, self._found, self._wanted, self._last = source, found, wanted, last
        self._stop = min(last + 1, FIRST_PIXEL_TAG)
        self._short, self._implicit, self._long = _HEADS[byte_order]
        self.explicit = True

    def run(self, position: int) -> int:
        """Walk from ``position``; return where the first element beyond ``last`` begins."""
        # Some writers declare one encoding and write the other: the bytes decide.
        self.explicit = self._source.buffer[position + 4 : position + 6] in _VRS
        while True:
            try:
                return self._elements(position)
            except _OutOfBytesError as need:
                position, end = need.args
                if not self._source.grow(end):
                    self._found.truncated = True
                    return position
            except _MalformedError as error:
                self._found.malformed = str(error)
                return position

    def _elements(self, position: int) -> int:
        buffer, values, wanted, stop = self._source.buffer, self._found.values, self._wanted, self._stop
        available = len(buffer)
        whole, short, short_vrs = available - 8 if self.explicit else -1, self._short.unpack_from, _SHORT_VRS
        while position < available or self._source.grow(position + 1):
            if position >= available:
                raise _OutOfBytesError(position, position + 1)
            if position > whole:
                tag, length, value = self._head(buffer, position, position)
            else:  # nearly every head is read here, without a call: 7 % of a scan
                group, element, vr, length = short(buffer, position)
                tag, value = group << 16 | element, position + 8
                if vr not in short_vrs or group == 0xFFFE:
                    tag, length, value = self._head(buffer, position, position)
            if tag >= stop:
                self._at_end(tag, length, value)
                return position
            end = value + length
            if length == _UNDEFINED:
                end = self._skip_items(buffer, value, position, 0)
            if end > available:
                raise _OutOfBytesError(position, end)
            if tag in wanted:
                values[tag] = buffer[value:end] if end - value <= _LONGEST_WANTED else b""
            elif tag in _FUNCTIONAL_GROUPS:
                self._found.has_functional_groups = True
            position = end
        self._found.truncated = position > available
        return position

    def _at_end(self, tag: int, length: int, value: int) -> None:
        if FIRST_PIXEL_TAG <= tag <= _LAST_PIXEL_TAG and self._last == _LAST_PIXEL_TAG:
            self._found.pixel_tag = tag
            self._found.pixel_offset = value
            self._found.pixel_length = None if length == _UNDEFINED else length

    def _head(self, buffer: bytes, position: int, restart: int) -> tuple[int, int, int]:
        """Tag, length and begin of the value of the element at ``position``."""
        if position + 8 > len(buffer):
            raise _OutOfBytesError(restart, position + 8)
        if not self.explicit:
            group, element, length = self._implicit.unpack_from(buffer, position)
            return group << 16 | element, length, position + 8
        group, element, vr, length = self._short.unpack_from(buffer, position)
        if vr in _SHORT_VRS and group != 0xFFFE:  # the length of an item may look like one
            return group << 16 | element, length, position + 8
        if group == 0xFFFE:
            return group << 16 | element, self._long.unpack_from(buffer, position + 4)[0], position + 8
        if vr in _LONG_VRS:
            if position + 12 > len(buffer):
                raise _OutOfBytesError(restart, position + 12)
            return group << 16 | element, self._long.unpack_from(buffer, position + 8)[0], position + 12
        if group == 2 or self._last != _LAST_OF_META:
            raise _MalformedError(f"no value representation at byte {position}")
        return group << 16 | element, length, position + 8

    def _skip_items(self, buffer: bytes, position: int, restart: int, depth: int) -> int:
        """Where the sequence of undefined length ends whose items begin at ``position``."""
        if depth > _DEEPEST_NESTING:
            raise _MalformedError(f"sequences nested deeper than {_DEEPEST_NESTING} levels")
        while True:
            tag, length, position = self._head(buffer, position, restart)
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM:
                raise _MalformedError(f"no sequence item at byte {position}")
            if length != _UNDEFINED:
                position += length
            else:
                position = self._skip_data_set(buffer, position, restart, depth)

    def _skip_data_set(self, buffer: bytes, position: int, restart: int, depth: int) -> int:
        """Where the item of undefined length ends whose elements begin at ``position``."""
        outer, self.explicit = self.explicit, buffer[position + 4 : position + 6] in _VRS  # UN holds implicit items
        try:
            while True:
                tag, length, position = self._head(buffer, position, restart)
                if tag == _ITEM_END:
                    return position
                nested = length == _UNDEFINED
                position = self._skip_items(buffer, position, restart, depth + 1) if nested else position + length
        finally:
            self.explicit = outer
