"""A command whose every step to the outside is noted: ``python -m tests.watched LOG WORDS...``.

Runs the command in this process and writes to LOG, as JSON lines, what it opened for writing, made, moved and removed,
the programs it started, and the sockets it used.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

_CHANGES = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime",
    "shutil.rmtree", "shutil.move", "sqlite3.connect", "tempfile.mkdtemp", "tempfile.mkstemp",
}  # fmt: skip
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def note(log: int, event: str, values: tuple[Any, ...]) -> None:
    """The hook; a name given by a handle is known from where it was opened."""
    if event == "open":
        path, _, flags = values
        if not flags & _WRITES or isinstance(path, int):
            return
        event, values = "write", (path,)
    elif event.startswith("socket.") and event not in {"socket.__new__", "socket.gethostname"}:
        values = values[1:] if len(values) > 1 else values
    elif event not in _CHANGES | _STARTS:
        return
    named = [os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else repr(value) for value in values]
    os.write(log, (json.dumps([event, *named]) + "\n").encode())


def main(place: Path, words: list[str]) -> None:
    """Watch a command."""
    log = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.argv = ["medseg", *words]
    sys.addaudithook(lambda event, values: note(log, event, values))
    runpy.run_module("medseg", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
