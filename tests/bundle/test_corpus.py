"""The corpus of malicious bundles: none gets through the audit of a command and does harm; and they are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from medseg.bundle import Bundle, audit
from medseg.bundle.checkpoints import weight_places
from medseg.bundle.findings import COMMANDS, blocks
from medseg.errors import MedsegError
from tests.bundle.corpus import CONFIG_PLACES, Command, Draft, Variant, Workbench, places
from tests.bundle.corpus_files import file_variants
from tests.bundle.corpus_semantics import semantic_variants
from tests.bundle.corpus_tricks import COMPONENTS, ENDLESS, EXPRESSIONS

_PLACES_PER_TRICK = 4


def _put(place: str, payload: Any) -> Any:
    def change(draft: Draft) -> None:
        CONFIG_PLACES[place][1](draft, json.loads(json.dumps(payload)))

    return change


def _values() -> Iterator[Variant]:
    """Every trick that is a value at a few places, and the plainest ones at all."""
    tricks = {
        **{f"$ {name}": f"${text}" for name, text in EXPRESSIONS.items()},
        **{f"component: {name}": value for name, value in COMPONENTS.items()},
        **{f"endless: {name}": f"${text}" for name, text in ENDLESS.items()},
    }
    everywhere = {"$ open", "component: target os.mkdir"}
    for turn, (trick, payload) in enumerate(tricks.items()):
        for place in CONFIG_PLACES if trick in everywhere else places(_PLACES_PER_TRICK, turn):
            commands, _, proof = CONFIG_PLACES[place]
            yield Variant(place, trick, commands, _put(place, payload), proof)


VARIANTS = [*_values(), *semantic_variants(), *file_variants()]


def gate(folder: Path, command: Command) -> str | None:
    """Why a command refuses the bundle before it evaluates anything of it; None if it does not."""
    try:
        if command in ("infer", "network"):
            opened = Bundle.open(folder, "audited" if command == "infer" else "network-only")
            pipeline = opened.pipeline
            opened.parsed(pipeline.network, *weight_places(pipeline))
            return None
        if command == "train":
            opened = Bundle.open(folder)
            opened.permit("train", train=opened.training)
            return None
    except MedsegError as error:
        return str(error)
    word = command if command in COMMANDS else "monai"
    found = [finding for finding in blocks(audit(folder)) if word in finding.commands]
    return str(found[0]) if found else None


class Live:
    """The process that uses bundles as they are."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        words = [sys.executable, "-m", "tests.bundle.live"]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def ask(self, bench: Workbench, **task: Any) -> dict[str, Any]:
        """What happened: ``seen`` and ``error``."""
        for path in bench.canary.iterdir():
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        (bench.canary / "victim").write_text("victim")
        (bench.canary / "secret").write_text('{"training": [{"image": "secret"}]}')
        os.mkfifo(bench.canary / "fifo")
        asked = {"folder": str(bench.folder), "canary": str(bench.canary), **task}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
