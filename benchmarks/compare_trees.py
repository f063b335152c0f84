"""Two checkouts of medseg against each other: does every result stay the same, and what became of the speed?

``python -m benchmarks.compare_trees OLD NEW [--data DIR] [--out FOLDER] [--only PART,…] [--expect PATTERN]``

Each tree runs in processes of its own, by the same interpreter, mostly through the command line, so that modules may
move between them. ``golden``: studies of phantoms to a trained, evaluated, trusted bundle and its DICOM objects, file
by file. ``bundles``: every shipped bundle that segments, on real data below DIR (default ``$MEDSEG_TEST_DATA``) or on
phantoms. ``reading``, ``metrics``, ``inference``, ``cold-start``: seconds, both trees in turn. A difference that is
meant is named with ``--expect``, a regular expression found in ``file [place]``. Exit status 1 if any other differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare_speed import HEAD, PARTS, Timing, measure
from benchmarks.golden import StepFailed, Tree, bundles, golden, make_data
from benchmarks.golden_files import Difference, allowed, compare_folders

RESULTS = ("golden", "bundles")
ALL = (*RESULTS, *PARTS)


@dataclass
class Outcome:
    """Everything that was found."""

    rows: list[tuple[str, int, int, int]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    expected: list[Difference] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def add(self, differences: Sequence[Difference], expect: Sequence[str]) -> None:
        for difference in differences:
            (self.expected if allowed(difference, expect) else self.differences).append(difference)

    @property
    def equal(self) -> bool:
        return not self.differences and not self.errors


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _walk_both(trees: Sequence[Tree], walk: Callable[[Tree], None], jobs: int, outcome: Outcome) -> None:
    """Both trees at once if two jobs may run; a walk that ends early is an error, and the other still ends."""
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(walk, tree) for tree in trees]:
            try:
                future.result()
            except StepFailed as error:
                outcome.errors.append(str(error))


def _compare(part: str, trees: Sequence[Tree], out: Path, expect: Sequence[str], outcome: Outcome) -> None:
    """One row per folder of the part."""
    old, new = (tree.side(part, out) for tree in trees)
    found = compare_folders(old, new, f"{part}/")
    names = sorted(old.files() | new.files())
    outcome.add(found.differences, expect)
    for group in sorted({_group(f"{part}/{name}") for name in names}):
        files = sum(_group(f"{part}/{name}") == group for name in names)
        both = outcome.differences, outcome.expected
        differ, meant = (len({d.file for d in some if _group(d.file) == group}) for some in both)
        outcome.rows.append((group, files, differ, meant))


def _group(name: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else f"{parts[0]}/(files)"


def compare_results(
    parts: Sequence[str], trees: Sequence[Tree], options: argparse.Namespace, out: Path, outcome: Outcome
) -> None:
    """Every part of ``parts`` whose files are compared."""
    data = out / "data"
    walks: dict[str, Callable[[Tree], None]] = {
        "golden": lambda tree: golden(tree, data),
        "bundles": lambda tree: bundles(tree, data, options.data),
    }
    for part in parts:
        begin = time.perf_counter()
        say(f"{part}: both trees take the walk")
        _walk_both(trees, walks[part], options.jobs, outcome)
        _compare(part, trees, out, options.expect, outcome)
        say(f"{part}: {time.perf_counter() - begin:.0f} s")


def compare_speed(
    parts: Sequence[str], trees: Sequence[Tree], options: argparse.Namespace, out: Path, outcome: Outcome
) -> None:
    """Every part of ``parts`` that is measured; what comes out must be equal here too."""
    for part in parts:
        say(f"{part}: both trees in turn, {options.repeats} times")
        try:
            for timing in measure(part, trees, out / "data", options.data, options.repeats):
                outcome.timings.append(timing)
                difference = timing.difference()
                if difference is not None:
                    (outcome.expected if allowed(difference, options.expect) else outcome.differences).append(
                        difference
                    )
        except StepFailed as error:
            outcome.errors.append(str(error))


def print_results(outcome: Outcome) -> None:
    if outcome.rows:
        print(f"{'results':<44}{'files':>8}{'differ':>12}{'expected':>12}")
    for name, files, differ, expected in outcome.rows:
        print(f"{name:<44}{files:>8}{differ or '-':>12}{expected or '-':>12}")
    if outcome.timings:
        print(f"\n{HEAD}", *outcome.timings, sep="\n")
    for title, some in (("expected", outcome.expected), ("DIFFERENT", outcome.differences)):
        if some:
            print(f"\n{title}:")
        for difference in some:
            print(f"  {difference}")
    for error in outcome.errors:
        print(f"\nERROR {error}")


def _write(outcome: Outcome, trees: Sequence[Tree], path: Path) -> None:
    """Everything as JSON, with the wall time of every command of the walks."""
    found = {
        "differences": [vars(difference) for difference in outcome.differences],
        "expected": [vars(difference) for difference in outcome.expected],
        "errors": outcome.errors,
        "timings": [{"name": timing.name, "cpu_s": timing.cpu, "wall_s": timing.wall} for timing in outcome.timings],
        "step_seconds": {tree.name: tree.seconds for tree in trees},
    }
    path.write_text(json.dumps(found, indent=1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD", help="a checkout of medseg")
    parser.add_argument("new", type=Path, metavar="NEW", help="another, which shall give the same")
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDSEG_TEST_DATA"), help="real test data")
    parser.add_argument("--out", type=Path, help="keep all results in this new folder")
    parser.add_argument("--only", default=",".join(ALL), help="comma-separated parts")
    parser.add_argument("--expect", action="append", default=[], metavar="PATTERN", help="a difference that is meant")
    parser.add_argument("--repeats", type=int, default=3, help="of every cold start; twice that in process")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="trees at once where nothing is timed")
    options = parser.parse_args(arguments)
    options.parts = options.only.split(",")
    if unknown := set(options.parts) - set(ALL):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    for tree in (options.old, options.new):
        if not (tree / "medseg" / "__init__.py").is_file():
            parser.error(f"{tree} holds no medseg")
    if options.data is not None and not Path(options.data).is_dir():
        parser.error(f"{options.data} is no folder")
    options.data = None if options.data is None else Path(options.data).resolve()
    if options.out is not None and options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    out = (options.out or Path(tempfile.mkdtemp(prefix="compare-trees-"))).resolve()
    trees = [Tree(name, root.resolve(), out / name) for name, root in (("old", options.old), ("new", options.new))]
    outcome = Outcome()
    try:
        for tree in trees:
            tree.check()
        make_data(trees[0], out / "data")
        compare_results([part for part in RESULTS if part in options.parts], trees, options, out, outcome)
        compare_speed([part for part in PARTS if part in options.parts], trees, options, out, outcome)
    except StepFailed as error:
        outcome.errors.append(str(error))
    print_results(outcome)
    _write(outcome, trees, out / "comparison.json")
    print("\nequal" if outcome.equal else "\nNOT EQUAL")
    if options.out is None and outcome.equal:
        shutil.rmtree(out)
    else:
        print(f"everything is in {out}")
    return 0 if outcome.equal else 1


if __name__ == "__main__":
    sys.exit(main())
