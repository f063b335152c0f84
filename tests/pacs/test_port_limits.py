"""Many strangers at once, and callers who are allowed and misbehave."""

from __future__ import annotations

import inspect
import re
import shutil
import socket
import threading
import time
from collections import namedtuple
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from medseg.pacs import pdu
from medseg.pacs.connection import Connection
from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.doorway import Refusals
from medseg.pacs.settings import DicomNode, PortLimits
from tests.pacs import attacks
from tests.pacs.attacks import associate, connected, data, ending, fragment, push, read_pdu, request, status_of, store
from tests.pacs.conftest import WaitUntil, listening, write_study
from tests.pacs.test_tls import certificate

_ACCEPT, _REJECT, _ABORT = 2, 3, 7
_PRESSED = PortLimits(max_waiting=20, max_waiting_per_host=10, first_pdu_seconds=30, request_seconds=30)


def test_silent_connections_do_not_shut_out_a_caller_from_their_own_host(tmp_path: Path) -> None:
    with listening(tmp_path / "in", port_limits=_PRESSED, max_associations=1) as (_, node), ExitStack() as stack:
        silent = [stack.enter_context(connected(node.port)) for _ in range(60)]
        begin = time.monotonic()
        NetworkRemote(node).echo()
        assert len(NetworkRemote(node).send(write_study(tmp_path / "source", "a")).sent) == 3
        assert time.monotonic() - begin < 2
        silent[0].settimeout(5)
        assert silent[0].recv(1) == b"", "the oldest made room"


def test_requests_that_stay_unfinished_share_a_bounded_memory(tmp_path: Path) -> None:
    limits = PortLimits(max_request_kb=900, request_seconds=30)
    with listening(tmp_path / "in", port_limits=limits) as (_, node), ExitStack() as stack:
        for _ in range(60):
            push(stack.enter_context(connected(node.port)), request(length=800 * 2**10), bytes(700 * 2**10))
        NetworkRemote(node).echo()


def test_places_are_counted_after_the_ae_titles(tmp_path: Path) -> None:
    with listening(tmp_path / "in", max_associations=1) as (_, node), connected(node.port) as first:
        assert associate(first)[0] == _ACCEPT
        with connected(node.port) as second:
            assert associate(second) == pdu.rejection(pdu.REJECTED_FULL)
        with connected(node.port) as stranger:
            assert associate(stranger, request(calling=b"X")) == pdu.rejection(pdu.REJECTED_CALLER)


def test_who_releases_may_come_again_at_once(tmp_path: Path) -> None:
    with listening(tmp_path / "in", max_associations=1) as (_, node), ExitStack() as stack:
        first = stack.enter_context(connected(node.port))
        associate(first)
        push(first, pdu.HEADER.pack(5, 4) + bytes(4))
        assert read_pdu(first)[0] == 6
        second = stack.enter_context(connected(node.port))
        assert associate(second)[0] == _ACCEPT, "though the first has not closed its connection"
        third = stack.enter_context(connected(node.port))
        assert associate(third) == pdu.rejection(pdu.REJECTED_FULL)


def test_an_association_that_rests_gives_its_place_to_another_caller(tmp_path: Path) -> None:
    limits = PortLimits(crowded_idle_seconds=0.2)
    with listening(tmp_path / "in", max_associations=1, port_limits=limits) as (_, node), connected(node.port) as first:
        assert associate(first)[0] == _ACCEPT
        time.sleep(0.3)
        NetworkRemote(node).echo()
        assert ending(first) == []


def test_more_associations_a_minute_than_allowed_are_refused_for_now(tmp_path: Path) -> None:
    with listening(tmp_path / "in", port_limits=PortLimits(max_associations_per_minute=3)) as (_, node):
        for _ in range(3):
            NetworkRemote(node).echo()
        with connected(node.port) as fourth:
            assert associate(fourth) == pdu.rejection(pdu.REJECTED_CONGESTION)


def test_what_is_not_asked_for_is_not_agreed_to(tmp_path: Path) -> None:
    asked = attacks.context(1) + attacks.context(3, "1.2.840.10008.99") + attacks.user()
    with listening(tmp_path / "in") as (_, node), connected(node.port) as connection:
        results = [
            part[2] for kind, part in pdu._items(memoryview(associate(connection, request(asked)))[74:]) if kind == 0x21
        ]
    assert results == [0, 3]


@pytest.mark.parametrize("waits", ["between requests", "inside of a data set", "one byte at a time"])
def test_an_association_that_comes_to_nothing_ends(tmp_path: Path, waits: str) -> None:
    limits = PortLimits(idle_seconds=0.4, min_kb_per_second=10)
    with listening(tmp_path / "in", port_limits=limits) as (_, node), connected(node.port) as connection:
        associate(connection)
        if waits != "between requests":
            push(connection, data(fragment(1, 3, attacks.store_command())))
        end = time.monotonic() + 3
        while waits == "one byte at a time" and time.monotonic() < end:
            try:
                connection.sendall(data(fragment(1, 0, b"x")))
            except OSError:
                break
            time.sleep(0.02)
        else:
            assert ending(connection) in ([], [_ABORT])
        assert time.monotonic() < end


def test_storms_of_aborts_and_of_connections_that_close_leave_no_threads(tmp_path: Path, wait_until: WaitUntil) -> None:
    with listening(tmp_path / "in", port_limits=PortLimits(max_associations_per_minute=1000)) as (_, node):
        NetworkRemote(node).echo()
        threads = threading.active_count()
        for k in range(60):
            with connected(node.port) as connection:
                push(connection, request() if k % 2 else b"", pdu.ABORT if k % 3 else b"")
        NetworkRemote(node).echo()
        wait_until(lambda: threading.active_count() <= threads, 5)


def test_a_disk_that_fills_up_inside_of_a_data_set_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("medseg.pacs.incoming._CHECKED_BYTES", 2**16)
    free = iter([usage(2**31), *[usage(0)] * 1000])
    with listening(tmp_path / "in", min_free_gb=1.0) as (_, node), connected(node.port) as connection:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: next(free))
        associate(connection)
        push(connection, store(attacks.data_set() + bytes(2**20)))
        assert status_of(read_pdu(connection)) == attacks.OUT_OF_RESOURCES
    assert not list((tmp_path / "in").rglob("*.dcm"))


def test_a_new_study_waits_while_too_many_are_open_but_open_ones_go_on(tmp_path: Path, wait_until: WaitUntil) -> None:
    options = {"max_open_studies": 2, "quiet_seconds": 1.5}
    with listening(tmp_path / "in", **options) as (listener, node):  # type: ignore[arg-type]
        for study in "ab":
            assert len(NetworkRemote(node).send(write_study(tmp_path / "source", study, 1)).sent) == 1
        assert not NetworkRemote(node).send(write_study(tmp_path / "source", "c", 1)).sent
        assert len(NetworkRemote(node).send(write_study(tmp_path / "source", "a", 2)).sent) == 2
        wait_until(lambda: {study.state for study in listener.queue.studies()} == {"done"})
        assert len(NetworkRemote(node).send(write_study(tmp_path / "source", "c", 1)).sent) == 1


def test_a_handshake_that_is_never_finished_keeps_nobody_waiting(tmp_path: Path) -> None:
    tls = certificate(tmp_path, "hospital")
    limits = PortLimits(first_pdu_seconds=0.5)
    with listening(tmp_path / "in", tls=tls, port_limits=limits) as (_, node), ExitStack() as stack:
        openings = (
            b"",
            b"\x16\x03\x01",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET / HTTP/1.1\r\n\r\n",
            request(),
        )
        half = [stack.enter_context(connected(node.port)) for _ in openings]
        for connection, opening in zip(half, openings, strict=True):
            push(connection, opening)
        trusted = DicomNode(node.ae_title, node.host, node.port, tls=tls, timeout_seconds=5)
        assert NetworkRemote(trusted).echo() < 2
        for connection in half:
            with suppress(ConnectionResetError):
                while connection.recv(100):
                    pass


def test_a_closed_listener_leaves_no_threads_and_no_files(tmp_path: Path) -> None:
    threads = threading.active_count()
    with listening(tmp_path / "in") as (_, node), ExitStack() as stack:
        for wish in (b"", b"\1\0", request(), request() + data(fragment(1, 3, attacks.store_command()))):
            push(stack.enter_context(connected(node.port)), wish)
        NetworkRemote(node).echo()
    assert threading.active_count() <= threads
    assert not list((tmp_path / "in").glob(".medseg-incoming-*"))


def test_a_flood_of_refusals_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for _ in range(1000):
        refusals("10.0.0.1", "garbage")
    assert refusals.counts() == {"garbage": 1000}
    assert len(caplog.records) == 1


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_any_request_is_read_or_refused(noise: bytes, start: int, stop: int) -> None:
    sound = request()
    broken = sound[:start] + noise + sound[stop:]
    for read, hostile in (
        (pdu.read_request, broken),
        (pdu.read_command, noise),
        (pdu.read_command, attacks.store_command()[:start] + noise),
    ):
        with suppress(pdu.Violation):
            read(hostile)
    with suppress(pdu.Violation):
        list(pdu.fragments(memoryview(noise)))


def test_pynetdicom_asks_of_a_socket_only_what_a_connection_has() -> None:
    """If this fails, pynetdicom has changed what :mod:`medseg.pacs.connection` stands in for."""
    asked = set(re.findall(r"self\.socket\.(\w+)", inspect.getsource(AssociationSocket)))
    of_a_client = {"connect", "settimeout", "getsockname", "__str__"}
    assert asked | set(re.findall(r"sock\.(\w+)\(", inspect.getsource(AssociationSocket._shutdown_socket))) <= {
        *vars(Connection),
        *of_a_client,
        "pending",  # of an SSLSocket only
    }
    assert "self.server.contexts" in inspect.getsource(RequestHandler._create_association)
    assert "select.select([self.socket], [], [], 0)" in inspect.getsource(AssociationSocket)
    assert "finish_request" in inspect.getsource(AssociationServer.process_request)


def test_what_a_killed_listener_left_half_arrived_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "in" / ".medseg-incoming-x"
    left.mkdir(parents=True)
    (left / "half.dcm").write_bytes(b"half")
    with listening(tmp_path / "in"):
        assert not left.exists()


def test_a_port_that_is_taken_is_told_and_leaves_no_threads(tmp_path: Path) -> None:
    threads = threading.active_count()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
        listening(tmp_path / "in", port=taken.getsockname()[1]),
    ):
        pass
    assert threading.active_count() <= threads
