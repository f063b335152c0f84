"""What ``medseg infer`` costs against the number of slices, structures and cases: CT phantoms as DICOM → label maps.

``python -m benchmarks.bench_scaling FOLDER [--size 512] [--slices 75 150 300] [--json FILE] [--plot FILE]``

Every point is one whole process of ``medseg infer --precision fp32``, from DICOM slices to a NIfTI label map on the
source grid: its CPU seconds and its peak resident memory as the operating system counted them, and the stages by the
clock as ``run.json`` holds them. The network is a small U-Net on a 3 mm grid with a hastily fitted last layer: its
labels are poor, its cost is real. Phantoms, weights and points are kept in FOLDER, so that it goes on if interrupted;
a new FOLDER measures anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.phantom_bundle import STRUCTURES, fitted_state, write_bundle
from medseg.files import write_json
from medseg.phantom import make_patient, write_dicom

SLICE_MM = 0.72
FIELD_OF_VIEW_MM = 336.0
STAGES = ("read", "prepare", "network", "restore", "write")


@dataclass(frozen=True)
class Point:
    """One whole process."""

    slices: int
    structures: int
    cases: int
    cpu_s: float
    peak_gib: float
    stages_s: dict[str, float]


def series(folder: Path, size: int, slices: int, seed: int) -> Path:
    """A CT series of ``slices`` slices as DICOM, made once."""
    place = folder / f"ct_{size}x{size}x{slices}_{seed}"
    if not place.is_dir():
        pixel = FIELD_OF_VIEW_MM / size
        patient = make_patient(
            seed, shape=(size, size, slices), spacing_mm=(pixel, pixel, SLICE_MM), structures=STRUCTURES, lesion=False
        )
        write_dicom(patient, place.with_suffix(".partial"), thin=False).main.rename(place)
        shutil.rmtree(place.with_suffix(".partial"))
    return place


def whole_process(bundle: Path, inputs: list[Path], output: Path) -> tuple[float, float, dict[str, float]]:
    """CPU seconds, peak memory in GiB and seconds per stage of one ``medseg infer``."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "medseg", "infer", str(bundle), *map(str, inputs), "-o", str(output)]
    child = subprocess.Popen([*command, "--precision", "fp32", "--quiet"])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"medseg infer ended with {child.returncode}: {' '.join(command)}")
    summary = json.loads((output / "run.json").read_text())["summary"]
    stages = {stage: summary["stages_seconds"].get(stage, 0.0) for stage in STAGES}
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, stages


class Bench:
    """Measures points, each once; prints them as they come."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.state = fitted_state(folder / "weights.pt")
        self.points: dict[str, Point] = {}

    def point(self, slices: int, structures: int, cases: int = 1) -> Point:
        name = f"{self.size}_{slices}_{structures}_{cases}"
        if name not in self.points:
            self.points[name] = self._kept(name) or self._measure(name, slices, structures, cases)
            print(row(self.points[name]), flush=True)
        return self.points[name]

    def _kept(self, name: str) -> Point | None:
        file = self.folder / "points" / f"{name}.json"
        return Point(**json.loads(file.read_text())) if file.is_file() else None

    def _measure(self, name: str, slices: int, structures: int, cases: int) -> Point:
        bundle = write_bundle(self.folder / f"bundle_{structures}", structures, self.state)
        inputs = [series(self.folder, self.size, slices, seed) for seed in range(cases)]
        cpu, peak, stages = whole_process(bundle, inputs, self.folder / f"output_{name}")
        point = Point(slices, structures, cases, round(cpu, 2), round(peak, 3), stages)
        (self.folder / "points").mkdir(exist_ok=True)
        write_json(self.folder / "points" / f"{name}.json", asdict(point))
        return point


def header() -> str:
    return f"{'slices':>7}{'structures':>11}{'cases':>6}{'CPU s':>8}{'peak GiB':>9}" + "".join(
        f"{s:>9}" for s in STAGES
    )


def row(point: Point) -> str:
    stages = "".join(f"{point.stages_s[stage]:>9.1f}" for stage in STAGES)
    return f"{point.slices:>7}{point.structures:>11}{point.cases:>6}{point.cpu_s:>8.1f}{point.peak_gib:>9.2f}{stages}"


def exponent(x: list[int], y: list[float]) -> float:
    """Slope of log cost over log size: 1 is linear, less is better than linear."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(curves: dict[str, list[Point]], path: Path) -> None:
    """CPU seconds and peak memory against structures, slices and cases."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), sharey="row", sharex="col", layout="constrained")
    for column, (name, points) in enumerate(curves.items()):
        x = [getattr(p, name) for p in points]
        for axis, key, colour in zip(axes[:, column], ("cpu_s", "peak_gib"), ("#1c7ed6", "#e8590c"), strict=True):
            axis.plot(
                x, [getattr(p, key) for p in points], "o-", color=colour, linewidth=2, markersize=6, clip_on=False
            )
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#e9ecef", linewidth=0.8)
            axis.set_xticks(x)
        axes[0, column].plot([0, x[-1]], [0, points[-1].cpu_s], "--", color="#adb5bd", zorder=0)
        axes[1, column].axhline(4, linestyle="--", color="#adb5bd", zorder=0)
        axes[1, column].set_xlabel(f"{name}\n({_fixed(points, name)})")
        axes[1, column].set_xlim(0, x[-1] * 1.03)
    everything = [point for points in curves.values() for point in points]
    axes[0, 0].set(ylabel="CPU seconds", ylim=(0, 1.08 * max(p.cpu_s for p in everything)))
    axes[1, 0].set(ylabel="peak memory, GiB", ylim=(0, max(4.6, 1.08 * max(p.peak_gib for p in everything))))
    axes[0, 0].annotate("proportional", (0.55, 0.12), xycoords="axes fraction", color="#868e96", fontsize=9)
    axes[1, 0].annotate("target 4 GiB", (0.02, 4.08), xycoords=("axes fraction", "data"), color="#868e96", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _fixed(points: list[Point], name: str) -> str:
    """What stays the same along a curve, in words."""
    last = points[-1]
    words = {"slices": f"{last.slices} slices", "structures": f"{last.structures} structures", "cases": "one case"}
    return ", ".join(text for key, text in words.items() if key != name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, nargs="+", default=[75, 150, 300])
    parser.add_argument("--structures", type=int, nargs="+", default=[2, 5, 9, 14])
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    bench = Bench(options.folder, options.size)
    print(header())
    few, many, most = min(options.slices), max(options.slices), max(options.structures)
    curves = {
        "structures": [bench.point(many, structures) for structures in sorted(options.structures, reverse=True)][::-1],
        "slices": [bench.point(slices, most) for slices in options.slices],
        "cases": [bench.point(few, most, cases) for cases in options.cases],
    }
    found: dict[str, Any] = {"size": options.size, "points": [asdict(point) for point in bench.points.values()]}
    for name, points in curves.items():
        found[f"exponent_{name}"] = exponent([getattr(p, name) for p in points], [p.cpu_s for p in points])
        print(f"CPU seconds grow with {name} to the power of {found[f'exponent_{name}']:.2f}")
    if options.plot:
        plot(curves, options.plot)
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
