"""A batch on worker processes against the same batch in this process.

``OMP_NUM_THREADS=1 python -m benchmarks.bench_cluster BUNDLE IMAGES [--cases 24] [--repeats 3] [--json FILE]``

Every process computes with one thread. The variants run in turn: this process alone, one worker, two workers. For each:
seconds until the first result (a cluster is started in them), then seconds per case by the clock, and CPU seconds per
case of all processes together, both from the third result to the last. The label maps must be the same bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch

from medseg.files import write_json
from medseg.inference import CaseResult, Options, run_batch

VARIANTS = {"this process": None, "local:1": "local:1", "local:2": "local:2"}
SETTLED = 3
"""Results after which every worker has done a case."""


def cpu_seconds() -> float:
    """CPU seconds of this process and of all below it."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += times.user + times.system
    return total


def run(bundle: Path, images: list[Path], output: Path, cluster: str | None) -> dict[str, float]:
    stamps: list[tuple[float, float]] = []

    def stamp(_: int, __: int, result: CaseResult) -> None:
        assert result.status == "done", result.message
        stamps.append((time.perf_counter(), cpu_seconds()))

    begin = time.perf_counter()
    run_batch(bundle, images, output, Options(precision="fp32", cluster=cluster), progress=stamp)
    (first, cpu_first), (last, cpu_last) = stamps[SETTLED - 1], stamps[-1]
    count = len(stamps) - SETTLED
    return {
        "first_result_s": stamps[0][0] - begin,
        "case_s": (last - first) / count,
        "case_cpu_s": (cpu_last - cpu_first) / count,
    }


def label_maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_seg.nii.gz"))}


def measure(bundle: Path, images: list[Path], repeats: int, variants: list[str]) -> dict[str, list[dict[str, float]]]:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as scratch:
        expected: dict[str, bytes] = {}
        for repeat in range(repeats):
            for name in variants:
                output = Path(scratch) / f"{repeat}-{name.replace(':', '-')}"
                rows[name].append(run(bundle, images, output, VARIANTS[name]))
                expected = expected or label_maps(output)
                assert label_maps(output) == expected, f"{name} gives other label maps"
                print(repeat, name, {key: round(value, 4) for key, value in rows[name][-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="what to run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = sorted(options.images.glob("[!.]*.nii.gz"))[: options.cases]
    rows = measure(options.bundle, images, options.repeats, options.only)
    medians = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()
    }
    base = medians[options.only[0]]
    print(f"{'variant':<14}{'first result s':>16}{'s a case':>10}{'faster':>8}{'CPU s a case':>14}{'more':>10}")
    for name, row in medians.items():
        print(
            f"{name:<14}{row['first_result_s']:>16.2f}{row['case_s']:>10.3f}{base['case_s'] / row['case_s']:>8.2f}"
            f"{row['case_cpu_s']:>14.3f}{row['case_cpu_s'] - base['case_cpu_s']:>+10.3f}"
        )
    if options.json:
        facts = {"cases": len(images), "cores": os.cpu_count(), "torch": torch.__version__}
        write_json(options.json, {**facts, "medians": medians, "runs": rows})


if __name__ == "__main__":
    main()
