"""What comes over the DICOM network, checked byte by byte before anyone acts on it.

Nothing here allocates by a length that the peer claims. Source: DICOM PS3.8 section 9.3 (PDUs) and annex D
(user information), PS3.7 annex E (command sets).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct(">BxI")
"""Type and length of a PDU."""
ASSOCIATE_REQUEST, DATA = 1, 4
SHORT_PDUS: Final = frozenset((5, 6, 7))
"""A-RELEASE-RQ, A-RELEASE-RP and A-ABORT, whose length is 4."""
LAST_PDUS: Final = frozenset((3, 6, 7))
"""A-ASSOCIATE-RJ, A-RELEASE-RP and A-ABORT: after one of them there is no association."""

ABORT: Final = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00"
"""A-ABORT of the service provider that gives no reason."""
REJECTED_CALLER, REJECTED_CALLED, REJECTED_VERSION = (1, 1, 3), (1, 1, 7), (1, 2, 2)
REJECTED_CONGESTION, REJECTED_FULL = (2, 3, 1), (2, 3, 2)
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

C_STORE_REQUEST: Final = 0x0001
_C_ECHO_REQUEST: Final = 0x0030
_NO_DATA_SET: Final = 0x0101
_COMMAND_LENGTHS: Final = {0x0000: 4, 0x0001: 4, 0x0100: 2, 0x0110: 2, 0x0700: 2, 0x0800: 2, 0x1031: 2}
_COMMAND_UIDS: Final = (0x0002, 0x1000)
_COMMAND_TEXTS: Final = (0x0010, 0x1030)
"""Elements (0000,xxxx) that requests to store and to echo have: numbers, UIDs, short texts."""
MOST_COMMAND_BYTES: Final = 4096

_FIXED: Final = 68
"""Bytes of an A-ASSOCIATE-RQ after its header and before its items."""
_MOST_SYNTAXES: Final = 128
"""Transfer syntaxes of one presentation context; some 60 are defined."""
_MOST_USER_ITEMS: Final = 1024
_SMALLEST_PDU: Final = 64
_UID: Final = re.compile(rb"[0-9.]{1,64}")
_TEXT: Final = re.compile(rb"[ -~]{0,16}")


class Violation(ConnectionError):
    """The peer does not keep to the protocol or to a limit; the connection ends. Holds no identity."""


@dataclass(frozen=True)
class Request:
    """An A-ASSOCIATE-RQ."""

    version: int
    called: bytes
    calling: bytes
    sop_classes: frozenset[str]


@dataclass(frozen=True)
class Command:
    """The command set of a message."""

    field: int
    has_data: bool


def rejection(reason: tuple[int, int, int]) -> bytes:
    """A-ASSOCIATE-RJ."""
    return b"\x03\x00\x00\x00\x00\x04\x00" + bytes(reason)


def read_request(data: bytes | bytearray) -> Request:
    """Read a whole A-ASSOCIATE-RQ. Raises ``Violation`` if any length or UID in it does not hold."""
    body = memoryview(data)[HEADER.size :]
    if len(body) < _FIXED:
        raise Violation("an association request that is too short")
    classes: dict[int, str] = {}
    for kind, value in _items(body[_FIXED:]):
        if kind == 0x10:
            _uid(value)
        elif kind == 0x20:
            number, sop_class = _context(value)
            if number in classes:
                raise Violation("a presentation context that is asked for twice")
            classes[number] = sop_class
        elif kind == 0x50:
            _check_user_information(value)
        else:
            raise Violation("an unknown item in an association request")
    if not classes:
        raise Violation("an association request without presentation contexts")
    version = int.from_bytes(body[:2])
    return Request(version, bytes(body[4:20]).strip(b" "), bytes(body[20:36]).strip(b" "), frozenset(classes.values()))


def _items(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and value of each item; items have a type, a reserved byte and two bytes of length."""
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise Violation("an item that ends early")
        end = position + 4 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            raise Violation("an item that claims more bytes than there are")
        yield data[position], data[position + 4 : end]
        position = end


def _context(value: memoryview) -> tuple[int, str]:
    """Number and SOP class of a presentation context."""
    if len(value) < 4 or value[0] % 2 == 0:
        raise Violation("a presentation context without an odd number")
    names: dict[int, list[str]] = {0x30: [], 0x40: []}
    for kind, name in _items(value[4:]):
        if kind not in names or len(names[kind]) == _MOST_SYNTAXES:
            raise Violation("a presentation context with items that it may not have")
        names[kind].append(_uid(name))
    if len(names[0x30]) != 1 or not names[0x40]:
        raise Violation("a presentation context without one SOP class and a transfer syntax")
    return value[0], names[0x30][0]


def _check_user_information(value: memoryview) -> None:
    for count, (kind, part) in enumerate(_items(value)):
        if count == _MOST_USER_ITEMS:
            raise Violation("too many items of user information")
        if kind == 0x51 and (len(part) != 4 or 0 < int.from_bytes(part) < _SMALLEST_PDU):
            raise Violation("a maximum length that nothing fits into")
        if kind == 0x52:
            _uid(part)
        if kind == 0x55 and not _TEXT.fullmatch(part):
            raise Violation("a version name that is no text")


def _uid(value: memoryview | bytes) -> str:
    name = bytes(value).rstrip(b"\0 ")
    if not _UID.fullmatch(name):
        raise Violation("a UID that is none")
    return name.decode("ascii")


def fragments(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Context number, control byte and value of each fragment in a P-DATA PDU. Raises ``Violation`` if lengths lie."""
    position = 0
    while position < len(body):
        end = position + 4 + int.from_bytes(body[position : position + 4])
        if end > len(body) or end < position + 6:
            raise Violation("a fragment whose length lies")
        yield body[position + 4], body[position + 5], body[position + 6 : end]
        position = end


def fragment(context: int, control: int, value: bytes | memoryview) -> bytes:
    """One fragment of a P-DATA PDU."""
    return (len(value) + 2).to_bytes(4) + bytes((context, control)) + value


def read_command(data: bytes | bytearray) -> Command:
    """Read a command set (implicit, little endian). Raises ``Violation`` unless it soundly asks to store or to echo."""
    values: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + 8 > len(data):
            raise Violation("a command set that ends early")
        group, element, length = struct.unpack_from("<HHI", data, position)
        end = position + 8 + length
        if group or end > len(data):
            raise Violation("a command set whose lengths lie")
        values[element] = _checked(element, bytes(data[position + 8 : end]))
        position = end
    try:
        field, kind, _ = (int.from_bytes(values[element], "little") for element in (0x0100, 0x0800, 0x0110))
        command, needed = Command(field, kind != _NO_DATA_SET), _COMMAND_UIDS[: 2 if field == C_STORE_REQUEST else 1]
    except KeyError:
        raise Violation("a command set that lacks an element") from None
    if field not in (C_STORE_REQUEST, _C_ECHO_REQUEST) or command.has_data != (field == C_STORE_REQUEST):
        raise Violation("a request that is neither to store nor to echo")
    if any(element not in values for element in needed):
        raise Violation("a command set that lacks a UID")
    return command


def _checked(element: int, value: bytes) -> bytes:
    if element in _COMMAND_UIDS:
        _uid(value)
    elif element in _COMMAND_TEXTS:
        if not _TEXT.fullmatch(value):
            raise Violation("a text in a command set that is none")
    elif len(value) != _COMMAND_LENGTHS.get(element):
        raise Violation("an element of a command set that it may not have")
    return value
