"""Seconds of two trees for the same work, in turn, for :mod:`benchmarks.compare_trees`.

What runs in process has one process per tree, which warms up once and then waits for its turns; a cold start is a
new process each time. CPU seconds with those of children; other work on the machine changes them less than wall time.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.golden import WORKER, StepFailed, Tree
from benchmarks.golden_files import Difference

PARTS = ("reading", "metrics", "inference", "cold-start")
SLICES = 220
_TURNS = 2
"""In process, for each repeat of a cold start: these measurements are short."""
_SHORT_S = 6.0
_MOST_TURNS = 20
"""More turns while both trees together have taken less than this."""
_PHANTOM = "phantom_ct_segmentation"
_HIPPOCAMPUS = "hippocampus_mri_segmentation"


@dataclass
class Timing:
    """One row: what was measured, and every measurement of both trees."""

    name: str
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"old": [], "new": []})
    wall: dict[str, list[float]] = field(default_factory=lambda: {"old": [], "new": []})
    results: dict[str, str] = field(default_factory=dict)

    def note(self, tree: Tree, answer: dict[str, Any]) -> None:
        self.cpu[tree.name].append(answer["cpu"])
        self.wall[tree.name].append(answer["wall"])
        self.results[tree.name] = answer.get("result", "")

    def difference(self) -> Difference | None:
        old, new = self.results.get("old", ""), self.results.get("new", "")
        return None if old == new else Difference(f"speed/{self.name}", "digest of the result", old, new)

    def __str__(self) -> str:
        (old, new), (wall_old, wall_new) = (
            [statistics.median(seconds[name]) for name in ("old", "new")] for seconds in (self.cpu, self.wall)
        )
        best = min(self.cpu["new"]) / min(self.cpu["old"])
        cpu = f"{old:>7.3f}{new:>8.3f}{new / old:>6.2f}{best:>6.2f}"
        return f"{self.name:<29}{cpu}   {wall_old:>7.3f}{wall_new:>8.3f}{wall_new / wall_old:>6.2f}"


HEAD = f"{'seconds, medians':<29}{'CPU old':>7}{'new':>8}{'ratio':>6}{'best':>6}  {'wall old':>8}{'new':>8}{'ratio':>6}"
"""``best``: ratio of the fastest, which other work on the machine disturbs least."""


class _Server:
    """A tree's process that does one kind of work each time it is asked."""

    def __init__(self, tree: Tree, name: str, arguments: Sequence[str | Path]) -> None:
        self.tree, self.name = tree, name
        self._log = (tree.folder / f"speed-{name}.log").open("w+")
        command = [sys.executable, "-P", str(WORKER), "serve", name, *map(str, arguments)]
        self._process = subprocess.Popen(
            command,
            cwd=tree.folder,
            env=tree.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._answer()

    def measure(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read()[-3000:]
            raise StepFailed(f"{self.tree.name}: {self.name} ended with {self._process.wait()}\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def _in_process(
    title: str, name: str, trees: Sequence[Tree], repeats: int, arguments: Callable[[Tree], Sequence[str | Path]]
) -> Timing:
    timing = Timing(title)
    with ExitStack() as stack:
        servers = [stack.enter_context(_Server(tree, name, arguments(tree))) for tree in trees]
        begin = time.perf_counter()
        for turn in range(max(_MOST_TURNS, _TURNS * repeats)):
            if turn >= _TURNS * repeats and time.perf_counter() - begin > _SHORT_S:
                break
            for server in servers:
                timing.note(server.tree, server.measure())
    return timing


def _reading(trees: Sequence[Tree], data: Path, _: Path | None, repeats: int) -> Iterator[Timing]:
    folder = data / "speed"
    done = trees[0].start(["-P", str(WORKER), "series", str(folder), str(SLICES)], data)
    if done.returncode:
        raise StepFailed(f"old: the series could not be made\n{done.stderr[-3000:]}")
    yield _in_process(f"CT as DICOM, {SLICES} slices", "series", trees, repeats, lambda _: [folder / "ct"])
    yield _in_process("the same as .nii.gz", "nifti", trees, repeats, lambda _: [folder / "volume.nii.gz"])
    headers = sum(path.is_file() for path in (folder / "many").rglob("*"))
    yield _in_process(f"scan of {headers} files", "scan", trees, repeats, lambda _: [folder / "many"])


def _metrics(trees: Sequence[Tree], _: Path, __: Path | None, repeats: int) -> Iterator[Timing]:
    yield _in_process("14 structures, 256×256×160", "metrics", trees, repeats, lambda _: [])


def _inference(trees: Sequence[Tree], data: Path, real: Path | None, repeats: int) -> Iterator[Timing]:
    """The predictor alone; and a whole run in a warm process, with trust where there are real cases for it."""
    image, name = _phantom(data), _PHANTOM
    yield _in_process(
        "predictor, one phantom", "predictor", trees, repeats, lambda tree: [tree.root / "bundles" / name, image]
    )
    if real is not None:
        image, name = min((real / "msd_hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz")), _HIPPOCAMPUS
    yield _in_process(
        "run of one case, warm",
        "batch",
        trees,
        repeats,
        lambda tree: [tree.root / "bundles" / name, image, tree.folder / "speed-batch"],
    )


def _cold_start(trees: Sequence[Tree], data: Path, _: Path | None, repeats: int) -> Iterator[Timing]:
    """New processes; the first of each tree only compiles what is not compiled yet."""
    yield _fresh("medseg --help", trees, repeats, lambda _: ["--help"])
    yield _fresh("medseg index, one file", trees, repeats, lambda _: ["index", str(_phantom(data))])
    image = str(_phantom(data))
    yield _fresh(
        "medseg infer, one small case",
        trees,
        repeats,
        lambda tree: ["infer", str(tree.root / "bundles" / _PHANTOM), image, "-o", "speed-cold"],
    )


def _phantom(data: Path) -> Path:
    return min((data / "study" / "nifti" / "images").glob("*.nii.gz"))


def _fresh(title: str, trees: Sequence[Tree], repeats: int, arguments: Callable[[Tree], list[str]]) -> Timing:
    timing = Timing(title)
    for repeat in range(repeats + 1):
        for tree in trees:
            shutil.rmtree(tree.folder / "speed-cold", ignore_errors=True)
            answer = _process(tree, ["-m", "medseg", *arguments(tree)])
            if repeat:
                timing.note(tree, answer)
    return timing


def _process(tree: Tree, arguments: list[str]) -> dict[str, Any]:
    """CPU (children included) and wall seconds of one process."""
    with (tree.folder / "speed-cold.log").open("w+") as log:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *arguments], cwd=tree.folder, env=tree.environment(), stdout=log, stderr=log
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise StepFailed(f"{tree.name}: {' '.join(arguments)} ended with {child.returncode}\n{log.read()[-3000:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall}


_MEASURE: dict[str, Callable[[Sequence[Tree], Path, Path | None, int], Iterator[Timing]]] = {
    "reading": _reading,
    "metrics": _metrics,
    "inference": _inference,
    "cold-start": _cold_start,
}


def measure(part: str, trees: Sequence[Tree], data: Path, real: Path | None, repeats: int) -> Iterator[Timing]:
    """Measurements of one of :data:`PARTS`.

    Raises
    ------
    StepFailed
        If a tree cannot do the work; with what it said.
    """
    yield from _MEASURE[part](trees, data, real, repeats)
