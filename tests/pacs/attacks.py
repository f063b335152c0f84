"""What a stranger may send to a DICOM port: a small grammar of PDUs, and the ways to break it."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CT, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
CALLED, CALLING = b"LISTEN", b"MEDSEG"
SECRET = "Doe^Jane"
FORGED = b"\n2026 ERROR"
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND, ANOTHER_INSTANCE = 0x0000, 0xA700, 0xC000, 0xA900


def item(kind: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(value) if length is None else length) + value


def context(number: int, sop_class: str | bytes = CT, *syntaxes: str | bytes) -> bytes:
    names = [_bytes(name) for name in syntaxes or (EXPLICIT,)]
    return item(0x20, bytes((number, 0, 0, 0)) + item(0x30, _bytes(sop_class)) + b"".join(item(0x40, n) for n in names))


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def user(*parts: bytes) -> bytes:
    return item(0x50, b"".join(parts or (item(0x51, struct.pack(">I", 16384)), item(0x52, b"1.2.3"))))


CONTEXTS = context(1) + context(3, VERIFICATION, IMPLICIT) + context(5, CT, DEFLATED) + context(7, CT, IMPLICIT)


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxI", kind, len(body) if length is None else length) + body


def request(
    items: bytes | None = None,
    *,
    called: bytes = CALLED,
    calling: bytes = CALLING,
    version: int = 1,
    length: int | None = None,
) -> bytes:
    name = item(0x10, b"1.2.840.10008.3.1.1.1")
    body = struct.pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    return pdu(1, body + (name + CONTEXTS + user() if items is None else items), length)


def data(*fragments: bytes, length: int | None = None) -> bytes:
    return pdu(4, b"".join(fragments), length)


def fragment(number: int, control: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">IBB", len(value) + 2 if length is None else length, number, control) + value


def element(tag: int, value: bytes, length: int | None = None) -> bytes:
    """An element of a command set."""
    return struct.pack("<HHI", 0, tag, len(value) if length is None else length) + value


def number(value: int) -> bytes:
    return struct.pack("<H", value)


def command(field: int, *more: bytes, has_data: bool) -> bytes:
    kind = 1 if has_data else 0x0101
    return b"".join((element(0x0100, number(field)), element(0x0110, number(1)), *more, element(0x0800, number(kind))))


def echo_command(field: int = 0x30) -> bytes:
    return command(field, element(0x0002, VERIFICATION.encode() + b"\0"), has_data=False)


def store_command(uid: bytes = b"1.2.3.4") -> bytes:
    padded = uid + b"\0" * (len(uid) % 2)
    more = element(0x0002, CT.encode() + b"\0"), element(0x0700, number(0)), element(0x1000, padded)
    return command(0x0001, *more, has_data=True)


def tag(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element of a data set, with a value representation."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", group, number) + vr
    return head + (struct.pack("<xxI", size) if vr in (b"OB", b"OW", b"UN", b"SQ") else struct.pack("<H", size)) + value


def data_set(uid: bytes = b"1.2.3.4", study: bytes = b"1.2.3") -> bytes:
    padded, of = uid + b"\0" * (len(uid) % 2), study + b"\0" * (len(study) % 2)
    return b"".join(
        (
            tag(0x0008, 0x0016, b"UI", CT.encode() + b"\0"),
            tag(0x0008, 0x0018, b"UI", padded),
            tag(0x0010, 0x0010, b"PN", SECRET.encode()),
            tag(0x0020, 0x000D, b"UI", of),
        )
    )


def store(encoded: bytes, uid: bytes = b"1.2.3.4", number: int = 1) -> bytes:
    parts = [encoded[start : start + 60_000] for start in range(0, len(encoded), 60_000)]
    last = len(parts) - 1
    return data(fragment(number, 3, store_command(uid))) + b"".join(
        data(fragment(number, 2 if k == last else 0, part)) for k, part in enumerate(parts)
    )


def deflated(encoded: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(encoded) + packer.flush()
    return packed + b"\0" * (len(packed) % 2)


def bomb(size: int) -> bytes:
    """A data set that inflates to ``size`` bytes, in front of its identifiers."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [packer.compress(tag(0x0008, 0x0001, b"UN", b"", size))]
    parts += [packer.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, packer.compress(data_set()), packer.flush()])


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def read_pdu(connection: socket.socket) -> bytes:
    """The next PDU of the listener; nothing if it has closed."""
    try:
        head = connection.recv(6, socket.MSG_WAITALL)
        return head + connection.recv(struct.unpack(">I", head[2:])[0], socket.MSG_WAITALL) if head else b""
    except ConnectionError:
        return b""


def associate(connection: socket.socket, wish: bytes | None = None) -> bytes:
    connection.sendall(wish or request())
    return read_pdu(connection)


def push(connection: socket.socket, *parts: bytes) -> None:
    """Send as long as the listener takes it."""
    try:
        for part in parts:
            connection.sendall(part)
    except OSError:
        return


def ending(connection: socket.socket) -> list[int]:
    """Types of the PDUs that come before the listener closes."""
    kinds = []
    while answer := read_pdu(connection):
        kinds.append(answer[0])
    return kinds


def status_of(answer: bytes) -> int:
    """Status of a C-STORE-RSP."""
    position = 12
    while position < len(answer):
        group, element_number, length = struct.unpack_from("<HHI", answer, position)
        if (group, element_number) == (0, 0x0900):
            return int.from_bytes(answer[position + 8 : position + 10], "little")
        position += 8 + length
    raise AssertionError("no status")


def _many(count: int, make: Callable[[int], bytes]) -> bytes:
    return b"".join(make(k) for k in range(count))


_UI = user()
AT_THE_DOOR: dict[str, bytes] = {
    **{f"request of length {n}": request(length=n) for n in (0, 5, 67, 2**31, 2**32 - 1)},
    **{f"request cut at {n}": request()[:n] for n in (1, 5, 6, 30, 74, 80, 100)},
    **{f"PDU type {n:#x}": pdu(n, bytes(4)) for n in (0, 2, 3, 5, 6, 7, 8, 0x16, 0xFF)},
    "data before association": data(fragment(1, 3, echo_command())),
    "release first": pdu(5, bytes(4)),
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "nothing but a half-open close": b"",
    "garbage": bytes(range(256)) * 40,
    "another version": request(version=2),
    "no items": request(b""),
    "no contexts": request(_UI),
    "garbage after the items": request(CONTEXTS + _UI + b"\x00garbage"),
    "item longer than its PDU": request(CONTEXTS + item(0x50, b"", 60_000)),
    "item of the greatest length": request(item(0x20, bytes(8), 0xFFFF) + _UI),
    "unknown item": request(CONTEXTS + item(0x77, b"x") + _UI),
    "unknown item in a context": request(item(0x20, b"\1\0\0\0" + item(0x41, b"1.2")) + _UI),
    "context with an even number": request(context(2) + _UI),
    "context twice": request(context(1) + context(1) + _UI),
    "200 contexts": request(_many(200, lambda k: context((2 * k + 1) % 256)) + _UI),
    "context of nothing": request(item(0x20, b"") + _UI),
    "context with two SOP classes": request(item(0x20, b"\1\0\0\0" + item(0x30, b"1.2") * 2 + item(0x40, b"1.2"))),
    "transfer syntax of 10 kB": request(context(1, CT, b"1." * 5000) + _UI),
    "transfer syntax with a line break": request(context(1, CT, b"1.2" + FORGED) + _UI),
    "SOP class with NUL inside": request(context(1, b"1.2\0.3") + _UI),
    "SOP class that is a path": request(context(1, b"../../etc") + _UI),
    "2000 transfer syntaxes": request(context(1, CT, *["1.2"] * 2000) + _UI),
    "5000 user items": request(CONTEXTS + user(*[item(0x56, b"")] * 5000)),
    "user items nested too long": request(CONTEXTS + user(item(0x51, item(0x50, b""), 9999))),
    "maximum length of 6": request(CONTEXTS + user(item(0x51, struct.pack(">I", 6)))),
    "maximum length of two bytes": request(CONTEXTS + user(item(0x51, b"\0\0"))),
    "version name with a line break": request(CONTEXTS + user(item(0x55, FORGED))),
    "request of 900 kB": request(CONTEXTS + item(0x50, item(0x58, bytes(60_000))) * 15),
    **{
        f"calling title {name!r}": request(calling=name)
        for name in (
            b"STRANGER", b"MEDSEG\0", b"M*", b"*", b"MEDSEG" + FORGED[:10], b"\x1b[2J", "MÉDSEG".encode(), b"",
            b"medseg", b"\0" * 16, b"MEDSEG\\OTHER", b"' OR 1=1 --", b"\xff" * 16, b"MED SEG",
        )
    },
    **{f"called title {name!r}": request(called=name) for name in (b"OTHER", b"LISTEN\0", b"*", FORGED, b"")},
}  # fmt: skip
"""What comes before an association; none of it gets one."""

_STORE = data(fragment(1, 3, store_command()))
INSIDE: dict[str, bytes] = {
    "a second request": request(),
    "an accept": pdu(2, bytes(100)),
    "unknown PDU type": pdu(9, bytes(4)),
    "release of 2 GB": pdu(5, b"", 2**31),
    "abort of 1 MB": pdu(7, bytes(2**20)),
    "data PDU of 4 GB": data(length=2**32 - 1),
    "data PDU larger than agreed": data(fragment(1, 0, bytes(2**20))),
    "data PDU cut": data(fragment(1, 3, echo_command()))[:-5],
    "fragment of length 0": data(fragment(1, 3, b"", 0)),
    "fragment of length 1": data(fragment(1, 3, b"", 1)),
    "fragment of 4 GB": data(fragment(1, 3, b"ab", 2**32 - 1)),
    "garbage after a fragment": data(fragment(3, 3, echo_command()) + b"xyz"),
    "HTTP inside": b"POST / HTTP/1.1\r\n\r\n",
    "data set without a command": data(fragment(1, 2, data_set())),
    "data set for an echo": data(fragment(3, 3, command(0x30, element(2, VERIFICATION.encode()), has_data=True))),
    "store without a data set": data(fragment(1, 3, store_command()[:-2] + number(0x0101))),
    "command inside of a data set": _STORE + data(fragment(1, 0, b"ab"), fragment(3, 3, echo_command())),
    "data set in another context": _STORE + data(fragment(5, 2, data_set())),
    "command in a context that was not agreed": data(fragment(99, 3, echo_command())),
    "command that does not end": data(*[fragment(3, 1, echo_command())] * 200),
    "command of garbage": data(fragment(3, 3, bytes(range(256)))),
    "command whose length lies": data(fragment(3, 3, element(0x0002, b"1.2", 2**31) + echo_command())),
    "command number of 3 bytes": data(fragment(3, 3, echo_command() + element(0x0700, b"abc"))),
    "command of another group": data(fragment(3, 3, struct.pack("<HHI", 8, 0, 0) + echo_command())),
    "command without a field": data(fragment(3, 3, element(0x0110, number(1)))),
    "empty command": data(fragment(3, 3, b"")),
    "event report": data(fragment(3, 3, echo_command(0x0100))),
    "500 event reports": data(fragment(3, 3, echo_command(0x0100))) * 500,
    "find": data(fragment(3, 3, echo_command(0x0020))),
    "cancel": data(fragment(3, 3, echo_command(0x0FFF))),
    "unknown command": data(fragment(3, 3, echo_command(0x7777))),
    "answer that nobody asked for": data(fragment(3, 3, echo_command(0x8030))),
    "title with a line break": data(fragment(1, 3, element(0x1030, FORGED[:10]) + store_command())),
    **{
        f"instance UID {uid[:12]!r}": data(fragment(1, 3, store_command(uid)))
        for uid in (b"../../../tmp/x", b"1.2\0.3", b"1.2" * 3400, b"1.2" + FORGED, b"", b"1.2.3/4", "1.2.é".encode())
    },
    "5000 echoes that wait for no answer": data(fragment(3, 3, echo_command())) * 5000,
    "5000 studies that wait for no answer": store(data_set()) * 5000,
    "data set that does not end": _STORE + data(fragment(1, 0, bytes(2**19))) * 10,
}
"""What comes inside of an association; all of it ends by an abort."""

STORED: dict[str, tuple[bytes, int]] = {
    "sound": (store(data_set()), SUCCESS),
    "in pieces of one byte": (
        data(fragment(1, 3, store_command())) + _many(40, lambda k: data(fragment(1, 0, data_set()[k : k + 1])))
        + data(fragment(1, 2, data_set()[40:])), SUCCESS,
    ),
    "another identifier than the command's": (store(data_set(b"9.9.9")), ANOTHER_INSTANCE),
    "no study": (store(data_set(study=b"")), CANNOT_UNDERSTAND),
    "a study of 10 kB": (store(data_set(study=b"1." * 5000)), CANNOT_UNDERSTAND),
    "a study that is a path": (store(data_set(study=b"../../../tmp/x")), SUCCESS),
    "a study with a line break": (store(data_set(study=b"1.2" + FORGED)), CANNOT_UNDERSTAND),
    "garbage": (store(bytes(range(256)) * 20), CANNOT_UNDERSTAND),
    "private tag of 4 GB first": (store(tag(9, 0x10, b"OB", b"ab", 2**32 - 2)), CANNOT_UNDERSTAND),
    "private tag of 4 GB after": (store(data_set() + tag(0x21, 0x10, b"OB", b"ab", 2**32 - 2)), SUCCESS),
    "sequences nested 5000 deep": (
        store(tag(8, 0x1140, b"SQ", b"", 2**32 - 1) + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1) * 5000),
        CANNOT_UNDERSTAND,
    ),
    "frames that lie": (
        store(data_set() + tag(0x28, 0x10, b"US", b"\xff\xff") + tag(0x7FE0, 0x10, b"OW", b"ab", 2**32 - 1)),
        SUCCESS,
    ),
    "larger than allowed": (store(data_set() + tag(0x7FE0, 0x10, b"OW", bytes(3 * 2**20))), OUT_OF_RESOURCES),
    "deflated": (store(deflated(data_set()), number=5), SUCCESS),
    "deflate bomb of 300 MB": (store(bomb(300 * 2**20), number=5), CANNOT_UNDERSTAND),
    "deflate of garbage": (store(bytes(range(256)) * 4, number=5), CANNOT_UNDERSTAND),
}  # fmt: skip
"""Instances, and what is answered to each."""
