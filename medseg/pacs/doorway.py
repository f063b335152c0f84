"""The door of a listening port: who has not shown an allowed AE title yet gets one thread among all, and little memory.

pynetdicom gives every connection two threads and one of its places before it knows who is there. Here one thread waits
for all of them, reads their association requests within limits of size and time, answers those it refuses itself, and
hands only the others to pynetdicom. When too many wait, the oldest makes room, never the newcomer: whoever speaks at
once is served, from the host of an attacker, too.
"""

from __future__ import annotations

import gc
import logging
import selectors
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.pacs import pdu
from medseg.pacs.connection import Connection, always_readable
from medseg.pacs.incoming import Incoming
from medseg.pacs.settings import PortLimits

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_SILENT_SECONDS = 1.0
_CLOSING_SECONDS = 2.0
_STOP_SECONDS = 5.0
_KEPT_SECONDS = 60.0
_CHUNK_BYTES = 2**16
_MOST_BUFFERED_BYTES = 32 * 2**20
"""Association requests that are not whole yet, all together."""
_LOG_SECONDS = 60.0
_MOST_HOSTS = 1024
_COLLECT_EVERY = 64


@dataclass(eq=False)
class _Waiting:
    """A connection that has not been accepted."""

    socket: socket.socket
    host: str
    since: float
    needs_handshake: bool
    buffer: bytearray = field(default_factory=bytearray)
    wanted: int = pdu.HEADER.size
    closing: float | None = None  # since when it has been told to go


class Refusals:
    """Counts what was refused; logs the first of a kind and host, and then once a minute how many more."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(self, host: str, reason: str) -> None:
        """Note one."""
        now = time.monotonic()
        with self._lock:
            self._counts[reason] += 1
            last, silent = self._told.pop((host, reason), (-_LOG_SECONDS, 0))
            if now - last < _LOG_SECONDS:
                self._told[host, reason] = last, silent + 1
                return
            if len(self._told) >= _MOST_HOSTS:
                del self._told[next(iter(self._told))]
            self._told[host, reason] = now, 0
        _log.warning("refused from %s: %s%s", host, reason, f" (and {silent} before)" if silent else "")

    def counts(self) -> dict[str, int]:
        """How many so far, by reason."""
        with self._lock:
            return dict(self._counts)


class Doorway:
    """Waits at the socket of a pynetdicom ``AssociationServer`` in place of its own ``serve_forever``."""

    def __init__(
        self,
        server: Any,
        callers: Sequence[str],
        *,
        limits: PortLimits,
        max_associations: int,
        incoming: Incoming,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._server, self._limits, self._incoming, self._tls = server, limits, incoming, tls
        self._most = max_associations
        self._called = server.ae_title.strip().encode("ascii")
        self._callers = frozenset(caller.strip().encode("ascii") for caller in callers)
        self._contexts = list(server.contexts)
        self.refusals = Refusals()
        self._waiting: dict[_Waiting, None] = {}  # in the order they came
        self._connections: list[Connection] = []
        self._accepted: dict[str, deque[float]] = {}
        self._handed_on = 0
        self._readable, self._writer = always_readable()
        self._selector = selectors.DefaultSelector()
        server.socket.listen(128)
        server.socket.setblocking(False)
        self._selector.register(server.socket, selectors.EVENT_READ)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="medseg-doorway", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection, and wait for their threads."""
        self._stop.set()
        self._thread.join()
        for waiting in list(self._waiting):
            self._drop(waiting)
        self._selector.close()
        self._server.server_close()
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + _STOP_SECONDS
        for association in self._server.active_associations:
            association.join(max(0.0, end - time.monotonic()))
            association.dul.join(max(0.0, end - time.monotonic()))
        for connection in self._connections:
            connection.close()
            connection.forget()
        self._readable.close()
        self._writer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(_TICK_SECONDS):
                waiting = key.data
                try:
                    if waiting is None:
                        self._accept()
                    elif waiting in self._waiting:
                        self._advance(waiting)
                except Exception as error:  # noqa: BLE001  whatever one connection does, the others are served
                    _log.error("a connection ended by %s", type(error).__name__)
                    if waiting is not None:
                        self._drop(waiting)
            self._tidy()

    def _accept(self) -> None:
        try:
            connected, address = self._server.socket.accept()
        except BlockingIOError:
            return
        except OSError as error:  # such as no more descriptors
            _log.error("a connection could not be accepted: %s", error.strerror)
            self._drop(next(iter(self._waiting), None))
            time.sleep(_TICK_SECONDS / 10)
            return
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            connected = self._tls.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
        host = address[0]
        beside = [waiting for waiting in self._waiting if waiting.host == host]
        if len(beside) >= self._limits.max_waiting_per_host:
            self._make_room(beside)
        elif len(self._waiting) >= self._limits.max_waiting:
            self._make_room(list(self._waiting))
        waiting = _Waiting(connected, host, time.monotonic(), self._tls is not None)
        self._waiting[waiting] = None
        self._selector.register(connected, selectors.EVENT_READ, waiting)

    def _make_room(self, candidates: Sequence[_Waiting]) -> None:
        """Drop the one that was told to go, or else has been silent, or else has waited for longest."""
        late = time.monotonic() - _SILENT_SECONDS

        def claim(waiting: _Waiting) -> tuple[bool, bool, float]:
            return waiting.closing is None, bool(waiting.buffer) or waiting.since > late, waiting.since

        dropped = min(candidates, key=claim)
        if dropped.closing is None:
            self.refusals(dropped.host, "a connection that waited when too many did")
        self._drop(dropped)

    def _drop(self, waiting: _Waiting | None) -> None:
        if waiting is not None and self._waiting.pop(waiting, waiting) is None:
            self._selector.unregister(waiting.socket)
            waiting.socket.close()

    def _advance(self, waiting: _Waiting) -> None:
        """Read on; the connection is dropped if it ends."""
        try:
            if waiting.needs_handshake:
                waiting.socket.do_handshake()  # type: ignore[attr-defined]
                waiting.needs_handshake = False
                self._selector.modify(waiting.socket, selectors.EVENT_READ, waiting)
            while chunk := waiting.socket.recv(min(waiting.wanted - len(waiting.buffer), _CHUNK_BYTES)):
                if waiting.closing is not None or self._take(waiting, chunk):
                    return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ssl.SSLWantWriteError:
            self._selector.modify(waiting.socket, selectors.EVENT_WRITE, waiting)
            return
        except pdu.Violation as violation:
            self.refusals(waiting.host, str(violation))
            self._send_off(waiting, pdu.ABORT)
            return
        except ssl.SSLError:
            self.refusals(waiting.host, "a TLS handshake that failed")
        except OSError:
            self.refusals(waiting.host, "a connection that was reset")
        self._drop(waiting)

    def _take(self, waiting: _Waiting, chunk: bytes) -> bool:
        """Add what came; whether the connection has left the waiting ones, or is done with."""
        waiting.buffer += chunk
        if waiting.wanted == pdu.HEADER.size == len(waiting.buffer):
            kind, length = pdu.HEADER.unpack(waiting.buffer)
            if kind != pdu.ASSOCIATE_REQUEST:
                raise pdu.Violation("something else than an association request")
            if length > self._limits.max_request_kb * 2**10:
                raise pdu.Violation("an association request larger than max_request_kb")
            waiting.wanted += length
        if len(waiting.buffer) < waiting.wanted:
            if sum(len(other.buffer) for other in self._waiting) > _MOST_BUFFERED_BYTES:
                self._make_room([other for other in self._waiting if len(other.buffer) >= _CHUNK_BYTES] or [waiting])
            return waiting not in self._waiting
        if waiting.wanted == pdu.HEADER.size:
            raise pdu.Violation("an association request that is too short")
        self._decide(waiting)
        return True

    def _decide(self, waiting: _Waiting) -> None:
        request = pdu.read_request(waiting.buffer)
        why = self._refusal(waiting.host, request)
        if why is None:
            self._hand_on(waiting, request)
        else:
            self.refusals(waiting.host, why[1])
            self._send_off(waiting, pdu.rejection(why[0]))

    def _refusal(self, host: str, request: pdu.Request) -> tuple[tuple[int, int, int], str] | None:
        if not request.version & 1:
            return pdu.REJECTED_VERSION, "an unknown version of the protocol"
        if request.called != self._called:
            return pdu.REJECTED_CALLED, "another called AE title"
        if request.calling not in self._callers:
            return pdu.REJECTED_CALLER, "a calling AE title that is not allowed"
        times, now = self._accepted.setdefault(host, deque()), time.monotonic()
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= self._limits.max_associations_per_minute:
            return pdu.REJECTED_CONGESTION, "more associations than max_associations_per_minute"
        if self._is_full() and not self._free_a_place():
            return pdu.REJECTED_FULL, "an association more than max_associations"
        times.append(now)
        return None

    def _is_full(self) -> bool:
        """Whether all places are taken; there may be as many again of threads whose association is over."""
        active = self._server.active_associations
        sockets = [getattr(association.dul.socket, "socket", None) for association in active]
        over = sum(one is None or getattr(one, "is_over", False) for one in sockets)
        return len(active) - min(over, self._most) >= self._most

    def _free_a_place(self) -> bool:
        """End the association that has rested for longest, if it is long enough."""
        resting = [one for one in self._connections if not one.closed_at and not one.is_over and one.is_resting]
        longest = min(resting, key=lambda one: one.last_seen, default=None)
        if longest is None or time.monotonic() - longest.last_seen < self._limits.crowded_idle_seconds:
            return False
        self.refusals(longest.host, "an association that rested when all places were taken")
        longest.shutdown(socket.SHUT_RDWR)
        longest.closed_at = time.monotonic()
        return True

    def _hand_on(self, waiting: _Waiting, request: pdu.Request) -> None:
        self._selector.unregister(waiting.socket)
        del self._waiting[waiting]
        connection = Connection(
            waiting.socket,
            waiting.host,
            bytes(waiting.buffer),
            limits=self._limits,
            incoming=self._incoming,
            readable=self._readable,
            refuse=self.refusals,
        )
        # pynetdicom copies what it supports for each association: 45 ms for all of it, nothing for what is asked for
        self._server.contexts = [one for one in self._contexts if one.abstract_syntax in request.sop_classes]
        try:
            self._server.finish_request(connection, waiting.socket.getpeername())
        except BaseException:  # such as no more threads
            connection.close()
            raise
        self._connections.append(connection)
        self._handed_on += 1
        if self._handed_on % _COLLECT_EVERY == 0:
            gc.collect()  # an association that has ended is a circle of objects

    def _send_off(self, waiting: _Waiting, last_words: bytes) -> None:
        """Say why, and wait a little for the peer to close: if we did, it might not get to read it."""
        waiting.closing, waiting.buffer, waiting.wanted = time.monotonic(), bytearray(), _CHUNK_BYTES
        try:
            waiting.socket.send(last_words)
            if not self._tls:
                waiting.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(waiting)

    def _tidy(self) -> None:
        """Drop who is too slow, and forget what has ended."""
        now, limits = time.monotonic(), self._limits
        for waiting in list(self._waiting):
            age, begun = now - waiting.since, len(waiting.buffer) >= pdu.HEADER.size
            if waiting.closing is not None:
                if now - waiting.closing > _CLOSING_SECONDS:
                    self._drop(waiting)
            elif age > (limits.request_seconds if begun else limits.first_pdu_seconds):
                self.refusals(waiting.host, "an association request that did not come in time")
                self._drop(waiting)
        kept = []
        for connection in self._connections:
            if connection.closed_at and now - connection.closed_at > _KEPT_SECONDS:
                connection.forget()
            else:
                kept.append(connection)
        self._connections = kept
        for host in [host for host, times in self._accepted.items() if not times or times[-1] < now - 60]:
            del self._accepted[host]
