"""The corpus of malicious bundles: none gets through the audit of a command and does harm; and they are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from medseg.bundle import Bundle, audit
from medseg.bundle.checkpoints import weight_places
from medseg.bundle.findings import COMMANDS, blocks
from medseg.errors import MedsegError
from tests.bundle.corpus import CONFIG_PLACES, Command, Draft, Variant, Workbench, places
from tests.bundle.corpus_files import file_variants
from tests.bundle.corpus_paths import path_variants
from tests.bundle.corpus_semantics import semantic_variants
from tests.bundle.corpus_tricks import COMPONENTS, ENDLESS, EXPRESSIONS

_PLACES_PER_TRICK = 2
_MOST_THAT_PASS = 60
_KINDS: dict[str, tuple[Command, ...]] = {
    "labelling": ("infer", "network", "monai"),
    "training": ("train", "evaluate"),
    "whole": get_args(Command),
}


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
            yield Variant(place, trick, commands, _put(place, payload), proof, place == "multi-GPU")


STILL_OPEN: dict[str, str] = {}
"""Tricks that get through, with the reason; the aim is none."""

VARIANTS = [*_values(), *semantic_variants(), *file_variants(), *path_variants()]


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
        os.utime(bench.canary / "secret", (0, time.time()))
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


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    process = Live()
    yield process
    process.close()


def _check(bench: Workbench, live: Live, chosen: Callable[[Variant], tuple[Command, ...]]) -> Counter[Command]:
    """Nothing that passes the gate of a command chosen for it does harm there; how many passed.

    What is known to get through must do so still: whoever closes it takes it off the list.
    """
    through: dict[str, str] = {}
    passed: Counter[Command] = Counter()
    asked: set[str] = set()
    for variant in VARIANTS:
        bench.apply(variant)
        for command in chosen(variant):
            asked.add(variant.trick)
            if gate(bench.folder, command) is None:
                passed[command] += 1
                if seen := live.ask(bench, command=command)["seen"]:
                    through[variant.name] = f"{command} | {variant.name}: {seen[0]}"
    bench.restore()
    new = [text for name, text in through.items() if name.partition(" | ")[2] not in STILL_OPEN]
    assert not new, "\n".join(new)
    closed = STILL_OPEN.keys() & asked - {name.partition(" | ")[2] for name in through}
    assert not closed, f"no longer open, take them off STILL_OPEN: {closed}"
    return passed


def test_the_corpus_is_large() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) >= 600
    assert {command for variant in VARIANTS for command in variant.commands} == set(get_args(Command))
    assert {variant.place for variant in VARIANTS} >= set(CONFIG_PLACES)


def test_the_clean_bundle_passes_and_does_nothing(bench: Workbench, live: Live) -> None:
    """The control group: what is refused below is refused for what was changed in it."""
    for kind, commands in _KINDS.items():
        bench.apply(Variant("nowhere", kind, commands, lambda _: None, whole=kind == "whole"))
        for command in commands:
            assert gate(bench.folder, command) is None
            assert live.ask(bench, command=command) == {"seen": [], "error": ""}


def test_nothing_gets_through(bench: Workbench, live: Live) -> None:
    """Every trick, for the first command that would come to it; of those that are a value, at one of its two places."""
    values = len(list(_values()))
    left_out = {variant.name for number, variant in enumerate(VARIANTS[:values]) if number % 4 in (1, 2)}
    passed = _check(bench, live, lambda variant: () if variant.name in left_out else variant.commands[:1])
    assert passed.total() < _MOST_THAT_PASS, passed


@pytest.mark.slow
def test_nothing_gets_through_for_any_command(bench: Workbench, live: Live) -> None:
    _check(bench, live, lambda variant: variant.commands)


@pytest.mark.slow
def test_each_trick_is_real(bench: Workbench, live: Live) -> None:
    """A corpus of dead attacks proves nothing: without the audit, each trick comes to its aim at one place at least."""
    proven: dict[str, bool] = {}
    for variant in VARIANTS:
        if variant.proof and not proven.get(variant.trick):
            bench.apply(variant)
            proven[variant.trick] = bool(live.ask(bench, proof=variant.proof)["seen"])
    bench.restore()
    assert len(proven) >= 300
    assert [trick for trick, real in proven.items() if not real] == []


def test_some_tricks_are_real(bench: Workbench, live: Live) -> None:
    """As above, for a few, so that a harness that sees nothing is noticed at once."""
    chosen = [variant for variant in VARIANTS if variant.place == "an id" and "endless" not in variant.trick][::12]
    for variant in chosen:
        bench.apply(variant)
        assert live.ask(bench, proof=variant.proof)["seen"], variant.name
    bench.restore()
