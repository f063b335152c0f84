"""A confined process writes where it may and nowhere else, whoever in it tries, and so with the network."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medseg import confinement
from medseg.confinement import can_filter_sockets, confine, lacking, landlock_version

needs_landlock = pytest.mark.skipif(landlock_version() < 6, reason="needs Landlock 6 (Linux 6.12)")
needs_filter = pytest.mark.skipif(not can_filter_sockets(), reason="sockets cannot be denied on this processor")


@pytest.fixture(scope="module")
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def _tried(folder: Path, server: socket.socket, **reach: Any) -> dict[str, Any]:
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "victim").write_text("whole")
    unix = str(folder / "socket")
    asked = {"inside": str(inside), "outside": str(outside), "reach": reach, "unix": unix}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(unix)
        listening.listen()
        command = [sys.executable, "-m", "tests.confined", json.dumps({**asked, "port": server.getsockname()[1]})]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "whole"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, server: socket.socket) -> dict[str, Any]:
    """What a process tried that may reach nothing."""
    return _tried(tmp_path_factory.mktemp("alone"), server)


@needs_landlock
def test_files_are_written_inside_only(alone: dict[str, Any]) -> None:
    tried, sockets = alone["tried"], {"connect", "listen", "UDP", "pair", "signal"}
    files = {name: found for name, found in tried.items() if "socket" not in name and "port" not in name}
    inside = {name for name in files if name.endswith(" in")}
    assert {files[name] for name in inside} == {"done"}
    links = {"hard link to": "OSError"}  # EXDEV: what lies outside cannot be linked under a rule that allows more
    denied = {name: links.get(name, "PermissionError") for name in files.keys() - inside - sockets}
    assert {name: files[name] for name in denied} == denied
    assert alone["notes"] == []


@needs_landlock
def test_the_wall_holds_for_threads_forks_programs_and_workers(alone: dict[str, Any]) -> None:
    assert alone["others"] == ["PermissionError"] * 3
    assert {worker[0] for worker in alone["workers"]} == {"PermissionError"}


@needs_filter
def test_nothing_is_reached(alone: dict[str, Any]) -> None:
    names = ("connect", "listen", "connect to another port", "UDP", "connect to a Unix socket")
    assert {alone["tried"][name] for name in names} == {"PermissionError"}
    assert {worker[1] for worker in alone["workers"]} == {"PermissionError"}
    assert alone["tried"]["pair"] == "done"


@needs_landlock
def test_others_get_no_signals(alone: dict[str, Any]) -> None:
    assert alone["tried"]["signal"] == "PermissionError"


@needs_landlock
def test_temporary_files_are_private_and_go_with_the_process(alone: dict[str, Any]) -> None:
    folder = Path(alone["temporary"])
    assert folder.name.startswith("medseg-")
    _gone(folder)


@needs_landlock
def test_only_the_ports_of_the_user_are_open(tmp_path: Path, server: socket.socket) -> None:
    port = server.getsockname()[1]
    tried = _tried(tmp_path, server, listen=[], connect=[port])["tried"]
    assert tried["connect"] == "done"
    assert tried["connect to another port"] == tried["listen"] == "PermissionError"
    assert tried["write"] == "PermissionError"


@needs_filter
def test_workers_may_be_spoken_to_but_nobody_on_the_network(tmp_path: Path, server: socket.socket) -> None:
    tried = _tried(tmp_path, server, workers=True)["tried"]
    assert tried["connect to a Unix socket"] == "done"
    assert tried["connect"] == tried["UDP"] == tried["listen"] == "PermissionError"


def _gone(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline, "the temporary folder is still there"
        time.sleep(0.01)


@needs_landlock
def test_a_killed_process_leaves_no_temporary_folder(tmp_path: Path) -> None:
    code = (
        "import tempfile, sys; from pathlib import Path; from medseg.confinement import confine; confine([]);"
        "Path(tempfile.gettempdir(), 'left').write_text('x'); print(tempfile.gettempdir(), flush=True); input()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert (folder / "left").exists()
        assert folder.parent == tmp_path
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == ""  # at once: nobody else holds the stream open
    _gone(folder)


def test_a_system_without_landlock_is_told_and_not_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(confinement, "landlock_version", lambda: 0)
    monkeypatch.setattr(confinement, "can_filter_sockets", lambda: False)
    before = dict(os.environ)
    notes = confine([tmp_path])
    assert notes == lacking()
    assert len(notes) == 2
    assert "no Landlock" in notes[0]
    assert os.environ == before


@needs_landlock
@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_older_systems_deny_what_they_can(version: int, tmp_path: Path) -> None:
    code = (
        "import sys, os, socket; from medseg import confinement as c; c.landlock_version = lambda: int(sys.argv[1]);"
        "print(c.confine([sys.argv[2]], c.Reach(connect=(9,)))); open(sys.argv[2] + '/in', 'w');\n"
        "try: open(sys.argv[2] + '-out', 'w')\n"
        "except PermissionError: print('held')\n"
        "try: socket.create_connection(('127.0.0.1', 1))\n"
        "except OSError as error: print(type(error).__name__)"
    )
    command = [sys.executable, "-c", code, str(version), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    notes, held, network = done.stdout.splitlines()
    assert held == "held"
    assert network == ("PermissionError" if version >= 4 else "ConnectionRefusedError")
    assert ("Landlock" in notes) == (version < 3)
