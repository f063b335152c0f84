"""One accepted connection, as pynetdicom sees it: a socket from which only sound PDUs within the limits come.

pynetdicom reads a PDU of whatever length it claims and keeps a data set in memory. Here each PDU is read whole, checked
and only then passed on; the data set goes to disk, and pynetdicom gets a ticket in its place, by which the handler of
the event finds it (:class:`medseg.pacs.incoming.Incoming`).
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable

from medseg.pacs import pdu
from medseg.pacs.incoming import Incoming, Spool
from medseg.pacs.pdu import Violation
from medseg.pacs.settings import PortLimits

_COMMAND, _LAST = 1, 2
"""Bits of the control byte of a fragment."""
_MOST_UNANSWERED = 8
"""Requests that a peer may send before the first is answered; without negotiating more, it is one."""


class Connection:
    """Looks like a socket to pynetdicom's ``AssociationSocket``, which asks for no more than is public here.

    ``first``: the association request, read and checked before. ``readable``: a socket that always has something to
    read, whose descriptor stands for ours as long as something is buffered. ``refuse``: told from which host and why,
    if we end it. ``is_over``: the association has been released or aborted; what is left are threads on their way out.
    """

    def __init__(
        self,
        connected: socket.socket,
        host: str,
        first: bytes,
        *,
        limits: PortLimits,
        incoming: Incoming,
        readable: socket.socket,
        refuse: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host, self.closed_at, self.last_seen = host, 0.0, clock()
        self.is_over = False
        self._socket, self._limits, self._incoming, self._readable = connected, limits, incoming, readable
        self._refuse, self._clock = refuse, clock
        self._left = memoryview(first)
        self._context, self._command = 0, bytearray()
        self._spool: Spool | None = None
        self._tickets: list[bytes] = []
        self._unanswered = 0
        self._window: tuple[float, int] | None = None
        connected.settimeout(limits.idle_seconds)

    def fileno(self) -> int:
        """Descriptor to wait for."""
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        return (self._readable if self._left or pending else self._socket).fileno()

    def recv(self, count: int) -> memoryview:
        """The next bytes of checked PDUs, at most ``count``; none if the peer has closed.

        Raises ``Violation`` if the peer does not keep to the protocol or the limits; it is then told so.
        """
        if not self._left:
            try:
                self._left = memoryview(self._next_pdu())
            except Violation as violation:
                self._refuse(self.host, str(violation))
                self._abort()
                raise
        part, self._left = self._left[:count], self._left[count:]
        return part

    def send(self, data: bytes) -> int:
        """Send all of ``data``, which is one PDU."""
        # before it leaves: the peer may ask for its next association as soon as this one is released
        self.is_over = self.is_over or data[0] in pdu.LAST_PDUS
        self._socket.sendall(data)
        if data[0] == pdu.DATA:
            parts = pdu.fragments(memoryview(data)[pdu.HEADER.size :])
            self._unanswered -= sum(control & 3 == _COMMAND | _LAST for _, control, _ in parts)
        self.last_seen = self._clock()
        return len(data)

    def shutdown(self, how: int) -> None:
        """As of a socket; no error if the peer was faster."""
        try:
            self._socket.shutdown(how)
        except OSError:
            return  # pynetdicom would not close it then

    def close(self) -> None:
        """As of a socket."""
        self._socket.close()
        if self._spool is not None:
            self._spool.file.close()
        self.closed_at = self.closed_at or self._clock()

    def forget(self) -> None:
        """Drop data sets that came whole and that nobody asked for."""
        for ticket in self._tickets:
            self._incoming.drop(ticket)

    @property
    def is_resting(self) -> bool:
        """Whether no message is under way and no answer is owed."""
        return self._window is None and self._unanswered <= 0

    def _abort(self) -> None:
        try:
            self._socket.sendall(pdu.ABORT)
        except OSError:
            return  # it is gone

    def _next_pdu(self) -> bytes:
        header = self._read(pdu.HEADER.size)
        if not header:
            self.is_over = True
            return b""
        kind, length = pdu.HEADER.unpack(header)
        self.is_over = self.is_over or kind == pdu.ABORT[0]
        if kind == pdu.DATA:
            if length > self._limits.max_pdu_kb * 2**10:
                raise Violation("a P-DATA PDU that is larger than was agreed")
        elif kind not in pdu.SHORT_PDUS or length != 4:
            raise Violation("a PDU that has no place in an association")
        body: bytes | bytearray = self._read(length)
        if kind == pdu.DATA:
            body = self._pass_on(memoryview(body))
        if not self._command and self._spool is None:
            self._window = None
        return pdu.HEADER.pack(kind, len(body)) + body

    def _read(self, count: int) -> bytearray:
        """Exactly ``count`` bytes, or none if the peer closed before the first of them."""
        buffer = bytearray(count)
        view, filled = memoryview(buffer), 0
        while filled < count:
            try:
                got = self._socket.recv_into(view[filled:])
            except TimeoutError:
                raise Violation("a PDU that does not end") from None
            if not got:
                if self._window is None:
                    return bytearray()
                raise ConnectionError("closed inside of a message")
            filled += got
            self._keep_pace(got)
        return buffer

    def _keep_pace(self, got: int) -> None:
        """A message that began must go on at a rate that ends it some day."""
        self.last_seen = now = self._clock()
        begin, received = self._window or (now, 0)
        self._window = begin, received + got
        if now - begin > self._limits.idle_seconds:
            if received < self._limits.min_kb_per_second * 2**10 * (now - begin):
                raise Violation("a message that trickles")
            self._window = now, 0

    def _pass_on(self, body: memoryview) -> bytearray:
        """The fragments that pynetdicom gets: commands as they are, data sets as tickets."""
        passed = bytearray()
        for context, control, value in pdu.fragments(body):
            if control & _COMMAND:
                self._take_command(context, value, last=bool(control & _LAST))
                passed += pdu.fragment(context, control, value)
            else:
                passed += pdu.fragment(context, control, self._take_data(context, value, last=bool(control & _LAST)))
        return passed

    def _take_command(self, context: int, value: memoryview, *, last: bool) -> None:
        if self._spool is not None or (self._command and context != self._context):
            raise Violation("a command inside of another message")
        self._context = context
        self._command += value
        if len(self._command) > pdu.MOST_COMMAND_BYTES:
            raise Violation("a command set that does not end")
        if last:
            if self._unanswered >= _MOST_UNANSWERED:
                raise Violation("requests that wait for no answer")
            self._unanswered += 1
            command = pdu.read_command(self._command)
            self._command = bytearray()
            self._spool = self._incoming.open() if command.has_data else None

    def _take_data(self, context: int, value: memoryview, *, last: bool) -> bytes:
        if self._spool is None or context != self._context:
            raise Violation("a data set without a command")
        self._spool.write(value)
        if not last:
            return b""
        ticket = self._incoming.deposit(self._spool)
        self._tickets = [*self._tickets[1 - 2 * _MOST_UNANSWERED :], ticket]
        self._spool = None
        return ticket


def always_readable() -> tuple[socket.socket, socket.socket]:
    """A socket that has something to read for ever, and the one that must stay open for that."""
    reader, writer = socket.socketpair()
    writer.send(b"\0")
    select.select([reader], [], [], 1.0)
    return reader, writer
