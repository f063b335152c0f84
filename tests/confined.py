"""What a confined process tries: ``python -m tests.confined INSIDE OUTSIDE REACH`` prints what came of each attempt."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg import confinement
from medseg.resources import bounded_map


def outcome(attempt: Callable[[], object]) -> str:
    """``done``, or the error's name."""
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return "done"


def write(place: Path) -> str:
    """Try to write a file; at module level, for a worker."""
    return outcome(lambda: place.write_text("x"))


def in_worker(place: Path) -> tuple[str, str]:
    """What a worker of a pool can do at a place, and to the network."""
    return write(place), outcome(lambda: socket.create_connection(("127.0.0.1", 1), timeout=5))


def files(inside: Path, outside: Path) -> dict[str, Callable[[], object]]:
    """Attempts on files: what is named ``in`` must work."""
    victim, link = outside / "victim", inside / "link"
    link.symlink_to(outside)
    mine = inside / "mine"
    mine.write_text("x")
    (inside / "deep").mkdir()
    return {
        "write in": lambda: (inside / "new").write_text("x"),
        "write deep in": lambda: (inside / "deep" / "new").write_text("x"),
        "move in": lambda: mine.rename(inside / "deep" / "mine"),
        "temporary in": lambda: tempfile.TemporaryFile().close(),
        "device in": lambda: Path(os.devnull).write_text("x"),
        "read in": lambda: victim.read_text(),
        "write": lambda: (outside / "new").write_text("x"),
        "append": lambda: victim.open("a").close(),
        "truncate": lambda: os.truncate(victim, 0),
        "remove": victim.unlink,
        "make folder": (outside / "folder").mkdir,
        "make pipe": lambda: os.mkfifo(outside / "pipe"),
        "make link": lambda: (outside / "away").symlink_to(inside),
        "through link": lambda: (link / "new").write_text("x"),
        "through dots": lambda: (inside / ".." / outside.name / "new").write_text("x"),
        "through /proc": lambda: Path(f"/proc/self/root{outside}/new").write_text("x"),
        "move out": lambda: (inside / "new").rename(outside / "new"),
        "move away": lambda: victim.rename(inside / "victim"),
        "hard link out": lambda: os.link(inside / "new", outside / "new"),
        "hard link to": lambda: os.link(victim, inside / "victim"),
        "where temporary files were": lambda: Path(tempfile.gettempdir()).with_name("medseg-new").write_text("x"),
    }


def sockets(port: int, unix: str) -> dict[str, Callable[[], object]]:
    """Attempts on the network."""
    udp = (socket.AF_INET, socket.SOCK_DGRAM)
    return {
        "connect": lambda: socket.create_connection(("127.0.0.1", port), timeout=5).close(),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)).close(),
        "connect to another port": lambda: socket.create_connection(("127.0.0.1", 1), timeout=5),
        "UDP": lambda: socket.socket(*udp).sendto(b"x", ("127.0.0.1", port)),
        "connect to a Unix socket": lambda: socket.socket(socket.AF_UNIX).connect(unix),
        "pair": socket.socketpair,
        "signal": lambda: os.kill(os.getppid(), 0),
    }


def by_others(outside: Path) -> dict[str, Any]:
    """The same by a thread, a fork, a program and workers."""
    place, found = outside / "new", []
    thread = threading.Thread(target=lambda: found.append(write(place)))
    thread.start()
    thread.join()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found.append(pool.apply(write, (place,)))
    shell = subprocess.run(["sh", "-c", f": > {place}"], check=False, stderr=subprocess.DEVNULL)
    found.append("done" if shell.returncode == 0 else "PermissionError")
    return {"others": found, "workers": [list(one) for one in bounded_map(in_worker, [place] * 4, 2)]}


def main(inside: Path, outside: Path, reach: Mapping[str, Any], port: int, unix: str) -> None:
    """Confine this process, try everything, say what came of it."""
    attempts = files(inside, outside) | sockets(port, unix)
    notes = confinement.confine([inside], confinement.Reach(**reach))
    tried = {name: outcome(attempt) for name, attempt in attempts.items()}
    told = {"tried": tried, "notes": notes, "temporary": tempfile.gettempdir(), **by_others(outside)}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    main(Path(asked["inside"]), Path(asked["outside"]), asked["reach"], asked["port"], asked["unix"])
