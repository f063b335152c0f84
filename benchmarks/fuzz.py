"""Damage the files that medseg reads, at random, and read them: a result or one of medseg's errors; nothing else.

Targets are described in :mod:`benchmarks.fuzz_targets`. Each case is tried in a worker process under a limit on memory
and time. A crash, a hang, a memory error, an error outside medseg's tree, or an unsound result is a failure (exit code
1).

    python -m benchmarks.fuzz --target reading --count 10000 --seed 0 [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_damage import damage
from benchmarks.fuzz_targets import TARGETS, Seed, Target
from medseg.errors import MedsegError
from medseg.resources import LIMIT_VARIABLE

MEMORY_LIMIT_GIB = 3.0
VOLUME_LIMIT_GIB = 0.5
CPU_LIMIT_S = 20
WALL_LIMIT_S = 300

# --- one case -----------------------------------------------------------------------------------------------------


def try_case(target: Target, seeds: list[Seed], seed: int, number: int, folder: Path) -> str:
    """Read one damaged source; the verdict: a reason code or class of error, what was made of it, or ``FAILED ...``."""
    random = np.random.default_rng((seed, number))
    chosen = seeds[number % len(seeds)]
    case = folder / f"case-{number}"
    case.mkdir()
    try:
        for name, raw in chosen.files.items():
            path = case / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damage(raw, random, chosen.form) if name == chosen.victim else raw)
        return f"{chosen.name}: {_verdict(target, case)}"
    finally:
        shutil.rmtree(case)


def _verdict(target: Target, case: Path) -> str:
    try:
        return target.attempt(case)
    except MedsegError as error:
        return str(getattr(error, "code", type(error).__name__))
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"FAILED {type(error).__name__}: {str(error)[:200]}"


def _work(connection: Connection, target: Target, seeds: list[Seed], seed: int, numbers: range) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # what the libraries of the target have mapped
    limit = pages * resource.getpagesize() + int(MEMORY_LIMIT_GIB * 1024**3)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.environ[LIMIT_VARIABLE] = str(VOLUME_LIMIT_GIB)
    with tempfile.TemporaryDirectory(prefix="medseg-fuzz-") as folder:
        for number in numbers:
            # A busy machine must not look like a hang: CPU time counts, and the clock only against waiting for ever.
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
            signal.alarm(WALL_LIMIT_S)
            connection.send((number, try_case(target, seeds, seed, number, Path(folder))))
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    connection.send((None, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f}"))


# --- many cases ---------------------------------------------------------------------------------------------------


def run(name: str, count: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Try ``count`` damaged sources of one target.

    Returns
    -------
    dict
        The tally of verdicts, the failures, and the largest memory of a worker in GiB.
    """
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        seeds = target.seeds(Path(folder))
    tally: Counter[str] = Counter()
    failures: list[str] = []
    peak_gib = 0.0
    for number, verdict in _results(target, seeds, seed, count, workers):
        if number is None:
            peak_gib = max(peak_gib, float(verdict))
            continue
        kind, _, found = verdict.partition(": ")
        tally[f"{kind}: {found.split(':')[0]}"] += 1
        if found.startswith("FAILED"):
            failures.append(f"case {number}: {verdict}")
    return {
        "target": name,
        "count": count,
        "seed": seed,
        "tally": dict(sorted(tally.items())),
        "failures": failures,
        "peak_gib": peak_gib,
    }


def _results(
    target: Target, seeds: list[Seed], seed: int, count: int, workers: int
) -> Iterator[tuple[int | None, str]]:
    context = multiprocessing.get_context("fork")

    running: dict[Connection, tuple[Any, list[int]]] = {}

    def start(numbers: range) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, target, seeds, seed, numbers))
        process.start()
        theirs.close()
        running[ours] = (process, list(numbers))

    for worker in range(workers):
        start(range(worker, count, workers))
    while running:
        for connection in multiprocessing.connection.wait(list(running)):
            assert isinstance(connection, Connection)
            process, left = running[connection]
            try:
                number, verdict = connection.recv()
            except EOFError:  # the worker died, or ended
                del running[connection]
                process.join()
                if left:
                    why = (
                        "hang"
                        if process.exitcode in (-signal.SIGALRM, -signal.SIGPROF)
                        else f"crash (exit code {process.exitcode})"
                    )
                    yield left[0], f"{seeds[left[0] % len(seeds)].name}: FAILED {why}"
                    start(range(left[0] + workers, count, workers))
                continue
            if number is not None:
                left.remove(number)
            yield number, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=sorted(TARGETS), default="reading")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start_s, start_cpu_s = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = run(options.target, options.count, options.seed, options.workers)
    result["seconds"] = round(time.perf_counter() - start_s, 1)
    result["cpu_seconds"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start_cpu_s, 1)
    verdicts: Counter[str] = Counter()
    for key, number in result["tally"].items():
        verdicts[key.partition(": ")[2]] += number
    print(
        f"{result['target']}: {result['count']} damaged sources, seed {result['seed']},"
        f" {result['cpu_seconds']} CPU seconds"
    )
    for verdict, number in verdicts.most_common():
        print(f"{number:8d}  {verdict}")
    print(f"limits: {MEMORY_LIMIT_GIB} GiB more than at the start and {CPU_LIMIT_S} CPU seconds a case")
    print(f"largest worker: {result['peak_gib']:.2f} GiB")
    print(f"{len(result['failures'])} failures", *result["failures"][:20], sep="\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main())
