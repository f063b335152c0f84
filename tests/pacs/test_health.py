from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from medseg.pacs import health
from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.settings import DicomNode
from tests.pacs.attacks import associate, connected, ending, push, request
from tests.pacs.conftest import WaitUntil, listening, write_study


@pytest.fixture
def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, DicomNode]]:
    monkeypatch.setattr(health, "_MOST_SECONDS", 0.6)
    with listening(tmp_path / "in", health_port=0) as (listener, node):
        yield listener._health.port, node


def _get(port: int, path: str = "/health") -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).read().decode()


def test_it_answers_while_many_say_nothing_or_too_much_and_keeps_no_threads(
    ports: tuple[int, DicomNode], wait_until: WaitUntil
) -> None:
    port, _ = ports
    threads = threading.active_count()
    hostile = (
        b"",
        b"GET /health HTTP/1.1\r\nA: ",
        b"GET /" + b"a" * 100_000,
        b"X: y\r\n" * 5000,
        b"\x16\x03\x01",
        b"GET\r\n\r\n",
    )
    with ExitStack() as stack:
        for k in range(120):
            push(stack.enter_context(connected(port)), hostile[k % len(hostile)])
        assert '"ok"' in _get(port)
        assert threading.active_count() <= threads + 2 * health._MOST_CONNECTIONS
        wait_until(lambda: threading.active_count() <= threads, 5)


def test_a_request_that_trickles_ends(ports: tuple[int, DicomNode]) -> None:
    with connected(ports[0]) as connection:
        begin = time.monotonic()
        while time.monotonic() < begin + 4:
            try:
                connection.sendall(b"G")
                connection.settimeout(0.05)
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() < begin + 3


def test_only_get_is_answered(ports: tuple[int, DicomNode]) -> None:
    for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"<script>"):
        with connected(ports[0]) as connection:
            push(connection, method + b" /health HTTP/1.0\r\n\r\n")
            answer = connection.recv(4096)
        assert answer.split()[1] == b"501"
        assert b"<script>" not in answer
        assert b"Python" not in answer


def test_other_paths_are_unknown(ports: tuple[int, DicomNode]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        _get(ports[0], "/../../etc/passwd")


def test_refused_connections_are_counted_by_reason_without_naming_anyone(
    ports: tuple[int, DicomNode], tmp_path: Path
) -> None:
    port, node = ports
    with connected(node.port) as connection:
        associate(connection, request(calling=b"Doe^Jane"))
    with connected(node.port) as connection:
        push(connection, b"GET / HTTP/1.1\r\n\r\n")
        ending(connection)
    NetworkRemote(node).send(write_study(tmp_path / "source", "a", 1))
    metrics = _get(port, "/metrics")
    assert 'medseg_refused{reason="a calling AE title that is not allowed"} 1' in metrics
    assert 'medseg_refused{reason="something else than an association request"} 1' in metrics
    assert "Doe" not in metrics


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    with listening(tmp_path / "in", health_port=0, host="0.0.0.0") as (listener, _):
        assert listener._health._server.server_address[0] == "127.0.0.1"
