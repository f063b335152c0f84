"""A DICOMweb server that misbehaves."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmwrite

from medseg.pacs import dicomweb
from medseg.pacs.dicomweb import WebRemote
from medseg.pacs.remote import PacsError
from medseg.pacs.settings import WebNode
from tests.pacs.conftest import make_instance

_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
_PARTS = b'HTTP/1.1 200 OK\r\nContent-Type: multipart/related; type="application/dicom"; boundary=B\r\n'
_ENDLESS = b"\r\n"
Answer = Callable[[socket.socket], None]


@contextmanager
def _serving(answer: Answer) -> Iterator[WebNode]:
    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    answer(connection)
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield WebNode(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_seconds=0.3, max_instance_mb=1)
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _say(data: bytes) -> Answer:
    return lambda connection: connection.sendall(data)


def _trickle(head: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(b" ")
            time.sleep(0.02)

    return answer


def _flood(head: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(400):
            connection.sendall(b"[" * 2**20)

    return answer


def _part(study: str) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, make_instance(study, 1), enforce_file_format=True)
    return b"--B\r\nContent-Type: application/dicom\r\n\r\n" + buffer.getvalue() + b"\r\n--B--\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        _say(_JSON + b"Content-Length: 1000000\r\n\r\n[]"),
        _say(_JSON + b"Content-Length: 2\r\n\r\n{{"),
        _say(_JSON + b"Content-Length: 9\r\n\r\n[1, null]"),
        _say(_JSON + b'Content-Length: 41\r\n\r\n[{"00200010": {"vr": "ZZ", "Value": 1}}] '),
        _say(_JSON + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000),
        _say(_JSON + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(2**24))),
        _say(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"),
        _say(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000 + _ENDLESS),
        _say(b"not HTTP at all\r\n\r\n"),
        _trickle(_JSON + _ENDLESS),
        _flood(_JSON + _ENDLESS),
    ],
    ids=[
        "short",
        "no JSON",
        "no objects",
        "odd values",
        "deep",
        "packed",
        "circle",
        "headers",
        "no HTTP",
        "trickle",
        "flood",
    ],
)
def test_a_list_that_is_none_is_an_error_in_time(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_MOST_LIST_BYTES", 2**24)
    begin = time.monotonic()
    with _serving(answer) as node, pytest.raises(PacsError) as raised:
        WebRemote(node).find({"PatientName": "Doe^Jane"})
    assert "Doe" not in str(raised.value)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "answer",
    [
        _say(_PARTS + b"Content-Length: 8\r\n\r\nno parts"),
        _say(_PARTS + b"Content-Length: 1000000\r\n\r\n" + _part("a")[:300]),
        _say(_PARTS + b"\r\n" + _part("another")),
        _say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        _say(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nok"),
        _trickle(_PARTS + b"\r\n--B\r\n\r\n"),
        _flood(_PARTS + b"\r\n--B\r\n\r\n"),
    ],
    ids=["no parts", "short", "another study", "no type", "another type", "trickle", "flood"],
)
def test_instances_that_are_none_are_an_error_in_time(answer: Answer, tmp_path: Path) -> None:
    begin, study = time.monotonic(), str(make_instance("a", 1).StudyInstanceUID)
    with _serving(answer) as node, pytest.raises(PacsError):
        list(WebRemote(node).fetch(study, None, tmp_path))
    assert time.monotonic() - begin < 5
    assert not list(tmp_path.rglob("*.dcm"))


def test_a_server_that_behaves_is_understood(tmp_path: Path) -> None:
    study = str(make_instance("a", 1).StudyInstanceUID)
    body = json.dumps([{"0020000D": {"vr": "UI", "Value": [study]}}]).encode()
    with _serving(_say(_JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as node:
        assert [match.study_uid for match in WebRemote(node).find({})] == [study]
    with _serving(_say(_PARTS + b"\r\n" + _part("a"))) as node:
        assert len(list(WebRemote(node).fetch(study, None, tmp_path))) == 1
