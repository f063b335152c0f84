"""Commands run one after another, each in a fork of a process that has imported only the command tree.

``python lean_runs.py ANSWER`` with a JSON list of command lines (lists of words) on stdin; ANSWER gets the exit code of
each, or what heavy package it was about to import and where: there it was ended. A fork starts faster than an
interpreter.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import medseg
from medseg.cli.main import load_commands, main

assert medseg
load_commands()

HEAVY = ("torch", "monai")


class Barrier(MetaPathFinder, Loader):
    """Ends the process when a heavy package is imported; asking where it lies is allowed."""

    def __init__(self, answer: Path) -> None:
        self.answer = answer

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        files = [frame.filename for frame in traceback.extract_stack() if "/medseg/" in frame.filename]
        end(self.answer, f"{spec.name} imported by {' > '.join(file.rpartition('/medseg/')[2] for file in files)}")

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError("create_module does not return")


def end(answer: Path, outcome: object) -> NoReturn:
    """Say what came of it and leave without a look back: this is a fork."""
    answer.write_text(json.dumps(outcome), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(words: list[str], answer: Path) -> NoReturn:
    """Run a command in this process, which ends with it."""
    sys.argv = ["medseg", *words]
    sys.meta_path.insert(0, Barrier(answer))
    try:
        main()
    except SystemExit as left:
        end(answer, left.code)
    except BaseException:  # noqa: BLE001  whatever it is, it is what came of the command
        end(answer, traceback.format_exc())
    end(answer, "no exit")


def run_all(answer: Path) -> None:
    """Run every command of stdin in a fork."""
    assert not [name for name in HEAVY if name in sys.modules], "the command tree alone imports something heavy"
    outcomes: list[object] = []
    for words in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            run(words, answer)
        os.waitpid(child, 0)
        outcomes.append(json.loads(answer.read_text(encoding="utf-8")))
        answer.unlink()
    answer.write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
