"""Damage DICOM, NIfTI, MetaImage and NRRD files at random and read them: refused with a reason, or sound; nothing else.

Each case is read in a worker process under a limit on memory and time. A crash, a hang, a memory error, any other
exception than a refusal, or a volume whose array and grid do not fit together is a failure (exit code 1).

    python -m benchmarks.fuzz_reading --count 10000 --seed 0 [--json FILE]
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medseg.errors import Refusal
from medseg.ingest import read_volume, save_nifti
from medseg.ingest.limits import LIMIT_VARIABLE
from tests.ingest.synthetic import Series, enhanced, enlarge, make_series, save

MEMORY_LIMIT_GIB = 3.0
VOLUME_LIMIT_GIB = 0.5
CPU_LIMIT_S = 20
WALL_LIMIT_S = 300
EDGES = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x00\x00\x00\x00",
    b"\xfe\xff\xff\xff",
    b"\xff\xff",
)


@dataclass(frozen=True)
class Seed:
    """A sound source: its files by name, and the one to damage."""

    name: str
    files: dict[str, bytes]
    victim: str


def make_seeds() -> list[Seed]:
    """One sound source of every kind that is read."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seeds = [_classic(root, name, syntax) for name, syntax in _SYNTAXES.items()]
        seeds.append(_one(save(enhanced(make_series()), root / "enhanced.dcm"), "enhanced"))
        packed = enhanced(make_series(change=enlarge))
        packed.compress(JPEG2000Lossless, generate_instance_uid=False)
        seeds.append(_one(save(packed, root / "enhanced-j2k.dcm"), "enhanced-j2k"))
        values = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
        affine = np.diag([-0.7, 0.8, 2.5, 1.0])
        for name, array in (
            ("int16.nii", values),
            ("int16.nii.gz", values),
            ("float32.nii.gz", values / np.float32(7)),
        ):
            save_nifti(array, affine, root / name)
            seeds.append(_one(root / name, name))
        for name in ("volume.mha", "volume.nrrd"):
            SimpleITK.WriteImage(
                SimpleITK.GetImageFromArray(values), str(root / name), useCompression=name.endswith("d")
            )
            seeds.append(_one(root / name, name))
    return seeds


_SYNTAXES: dict[str, Any] = {
    "classic": None,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "j2k": JPEG2000Lossless,
    "jpeg-ls": JPEGLSLossless,
}


def _classic(root: Path, name: str, syntax: Any) -> Seed:
    series: Series = make_series((0.0, 2.5, 5.0, 7.5), change=enlarge)
    for item in series.slices:
        item.RescaleSlope, item.RescaleIntercept = "1", "-1024"
        if syntax == DeflatedExplicitVRLittleEndian:
            item.file_meta.TransferSyntaxUID = syntax
        elif syntax is not None:
            item.compress(syntax, generate_instance_uid=False)
    files = {file.name: file.read_bytes() for file in series.write(root / name).iterdir()}
    return Seed(name, files, "image-001.dcm")


def _one(path: Path, name: str) -> Seed:
    return Seed(name, {path.name: path.read_bytes()}, path.name)


# --- damage -------------------------------------------------------------------------------------------------------


def damage(raw: bytes, random: np.random.Generator) -> bytes:
    """One to three random mutations, mostly in the header, where they do most harm."""
    data = bytearray(raw)
    for _ in range(int(random.integers(1, 4))):
        if data:
            MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random)
    return bytes(data)


def _place(data: bytearray, random: np.random.Generator) -> int:
    header = random.random() < 0.8
    return int(random.integers(min(len(data), 1500) if header else len(data)))


def _flip(data: bytearray, random: np.random.Generator) -> None:
    data[_place(data, random)] ^= 1 << int(random.integers(8))


def _set(data: bytearray, random: np.random.Generator) -> None:
    data[_place(data, random)] = int(random.integers(256))


def _edge(data: bytearray, random: np.random.Generator) -> None:
    place, value = _place(data, random), EDGES[int(random.integers(len(EDGES)))]
    data[place : place + len(value)] = value


def _cut(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(len(data))) :]


def _remove(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    del data[place : place + int(random.integers(1, 64))]


def _repeat(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    data[place:place] = data[place : place + int(random.integers(1, 64))]


def _noise(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    data[place : place + 16] = random.bytes(16)


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip, _flip, _set, _edge, _edge, _cut, _remove, _repeat, _noise,
)  # fmt: skip


# --- one case -----------------------------------------------------------------------------------------------------


def try_case(seeds: list[Seed], seed: int, number: int, folder: Path) -> str:
    """Read one damaged source; the verdict: a reason code, ``loaded``, or ``FAILED ...``."""
    random = np.random.default_rng((seed, number))
    chosen = seeds[number % len(seeds)]
    case = folder / f"case-{number}"
    case.mkdir()
    try:
        for name, raw in chosen.files.items():
            (case / name).write_bytes(damage(raw, random) if name == chosen.victim else raw)
        return f"{chosen.name}: {_verdict(case)}"
    finally:
        shutil.rmtree(case)


def _verdict(case: Path) -> str:
    try:
        values, geometry, _ = read_volume(case)
    except Refusal as refusal:
        return str(refusal.code)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"FAILED {type(error).__name__}: {str(error)[:200]}"
    if values.shape != geometry.shape or not np.isfinite(geometry.affine).all() or not np.isfinite(values).all():
        return "FAILED unsound volume"
    return "loaded"


def _work(connection: Connection, seeds: list[Seed], seed: int, numbers: range) -> None:
    limit = int(MEMORY_LIMIT_GIB * 1024**3)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.environ[LIMIT_VARIABLE] = str(VOLUME_LIMIT_GIB)
    with tempfile.TemporaryDirectory(prefix="medseg-fuzz-") as folder:
        for number in numbers:
            # A busy machine must not look like a hang: CPU time counts, and the clock only against waiting for ever.
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
            signal.alarm(WALL_LIMIT_S)
            connection.send((number, try_case(seeds, seed, number, Path(folder))))
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    connection.send((None, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f}"))


# --- many cases ---------------------------------------------------------------------------------------------------


def run(count: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Try ``count`` damaged sources; the tally of verdicts, the failures, and the largest memory of a worker in GiB."""
    seeds = make_seeds()
    tally: Counter[str] = Counter()
    failures: list[str] = []
    peak_gib = 0.0
    for number, verdict in _results(seeds, seed, count, workers):
        if number is None:
            peak_gib = max(peak_gib, float(verdict))
            continue
        kind, _, found = verdict.partition(": ")
        tally[f"{kind}: {found.split(':')[0]}"] += 1
        if found.startswith("FAILED"):
            failures.append(f"case {number}: {verdict}")
    return {
        "count": count,
        "seed": seed,
        "tally": dict(sorted(tally.items())),
        "failures": failures,
        "peak_gib": peak_gib,
    }


def _results(seeds: list[Seed], seed: int, count: int, workers: int) -> Iterator[tuple[int | None, str]]:
    context = multiprocessing.get_context("fork")

    running: dict[Connection, tuple[Any, list[int]]] = {}

    def start(numbers: range) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, seeds, seed, numbers))
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
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start_s, start_cpu_s = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = run(options.count, options.seed, options.workers)
    result["seconds"] = round(time.perf_counter() - start_s, 1)
    result["cpu_seconds"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start_cpu_s, 1)
    verdicts: Counter[str] = Counter()
    for key, number in result["tally"].items():
        verdicts[key.partition(": ")[2]] += number
    print(f"{result['count']} damaged sources, seed {result['seed']}, {result['cpu_seconds']} CPU seconds")
    for verdict, number in verdicts.most_common():
        print(f"{number:8d}  {verdict}")
    print(f"limits: {MEMORY_LIMIT_GIB} GiB and {CPU_LIMIT_S} CPU seconds a case")
    print(f"largest worker: {result['peak_gib']:.2f} GiB")
    print(f"{len(result['failures'])} failures", *result["failures"][:20], sep="\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main())
