from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.listener import Listener
from medseg.pacs.settings import DicomNode, PortLimits
from tests.pacs import attacks
from tests.pacs.attacks import associate, connected, ending, pdu, push, read_pdu, request
from tests.pacs.conftest import listening, write_study

_ABORT, _REJECT, _ACCEPT, _DATA = 7, 3, 2, 4
_LIMITS = PortLimits(first_pdu_seconds=1.0, request_seconds=1.0, idle_seconds=3.0, max_associations_per_minute=10_000)
_MOST_GROWTH_MB = 60


def resident_mb(process: str = "self") -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Listener, DicomNode]]:
    folder = tmp_path_factory.mktemp("port") / "in"
    with listening(folder, port_limits=_LIMITS, max_instance_mb=2, quiet_seconds=30) as both:
        NetworkRemote(both[1]).echo()
        yield both


@pytest.fixture
def unharmed(port: tuple[Listener, DicomNode], caplog: pytest.LogCaptureFixture) -> Iterator[DicomNode]:
    """After the test the listener answers, has grown little, keeps no threads, and tells nothing in its log."""
    listener, node = port
    folder = listener._settings.folder
    threads, before, beside = threading.active_count(), resident_mb(), set(folder.parent.iterdir())
    with caplog.at_level(logging.DEBUG):
        yield node
        begin = time.monotonic()
        NetworkRemote(node).echo()
        assert time.monotonic() - begin < 2
    assert resident_mb() - before < _MOST_GROWTH_MB
    assert set(folder.parent.iterdir()) == beside
    _wait(lambda: threading.active_count() <= threads)
    _wait(lambda: not list(folder.glob(".medseg-incoming-*/*")))
    for record in caplog.records:
        assert not record.name.startswith("pynetdicom")
        assert attacks.SECRET not in record.getMessage()
        assert record.getMessage().isprintable()


def _wait(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("name", attacks.AT_THE_DOOR)
def test_what_is_no_sound_request_of_an_allowed_caller_gets_no_association(name: str, unharmed: DicomNode) -> None:
    with connected(unharmed.port) as connection:
        push(connection, attacks.AT_THE_DOOR[name])
        if "half-open" in name:
            connection.shutdown(socket.SHUT_WR)
        assert ending(connection) in ([], [_ABORT], [_REJECT])


@pytest.mark.parametrize("name", attacks.INSIDE)
def test_what_breaks_the_protocol_ends_the_association(name: str, unharmed: DicomNode) -> None:
    with connected(unharmed.port) as connection:
        assert associate(connection)[0] == _ACCEPT
        push(connection, attacks.INSIDE[name])
        assert [kind for kind in ending(connection) if kind != _DATA] in ([], [_ABORT])


@pytest.mark.parametrize("name", attacks.STORED)
def test_an_instance_is_stored_or_refused_with_a_status(
    name: str, unharmed: DicomNode, port: tuple[Listener, DicomNode]
) -> None:
    encoded, status = attacks.STORED[name]
    files = port[0]._settings.folder / "studies"
    before = len(list(files.rglob("*")))
    with connected(unharmed.port) as connection:
        associate(connection)
        push(connection, encoded)
        assert attacks.status_of(read_pdu(connection)) == status
        push(connection, pdu(5, bytes(4)))
        assert ending(connection) == [6]
    if status:
        assert len(list(files.rglob("*"))) == before


_SETTINGS = """
[listener]
ae_title = "LISTEN"
port = 0
folder = "in"
allowed_callers = ["MEDSEG"]
min_free_gb = 0
"""


@pytest.mark.slow
def test_a_caller_is_served_in_two_seconds_and_300_mb_among_200_silent_and_50_malformed_connections(
    tmp_path: Path,
) -> None:
    (tmp_path / "pacs.toml").write_text(_SETTINGS)
    command = [sys.executable, "-m", "medseg", "pacs", "listen", "pacs.toml"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            node = DicomNode("LISTEN", "127.0.0.1", int(re.findall(r"port (\d+)", first)[0]), timeout_seconds=10)
            _attack_and_serve(node, str(process.pid), write_study(tmp_path / "source", "a"))
        finally:
            process.kill()


def _attack_and_serve(node: DicomNode, process: str, files: Sequence[Path]) -> None:
    hostile = [*attacks.AT_THE_DOOR.values(), request(length=2 * 10**9) + bytes(2**24)]
    with ExitStack() as stack:
        for k in range(250):
            connection = stack.enter_context(connected(node.port))
            if k % 5 == 4:
                push(connection, hostile[k // 5 % len(hostile)])
        begin = time.monotonic()
        NetworkRemote(node).echo()
        assert len(NetworkRemote(node).send(files).sent) == len(files)
        assert time.monotonic() - begin < 2
        assert resident_mb(process) < 300
