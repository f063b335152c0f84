"""The first result: ``medseg infer`` of one case against ``python -m monai.bundle run``, as whole processes.

``python -m benchmarks.bench_cold_start IMAGE [--repeats 3] [--json FILE]``

Both start from nothing, import what they import, open the shipped hippocampus bundle, label IMAGE (a NIfTI file) and
write the label map; medseg leaves out its judge of trust, which MONAI has not. They run in turn; the table shows
medians, and the label maps must agree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.agreement import agreement
from medseg.files import write_json

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds (children included) and wall seconds of one process."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{said.decode(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - begin


def commands(folder: Path) -> dict[str, list[str]]:
    config = str(BUNDLE / "configs" / "inference.json")
    monai = ["--config_file", config, "--bundle_root", str(BUNDLE), "--dataset_dir", str(folder / "data")]
    return {
        "medseg": [sys.executable, "-m", "medseg", "infer", str(BUNDLE), str(folder / "data"), "--no-trust", "-o"],
        "monai": [sys.executable, "-m", "monai.bundle", "run", *monai, "--output_dir"],
    }


def labels(folder: Path) -> np.ndarray:
    (path,) = folder.rglob("*_seg.nii.gz")
    return np.asarray(nib.load(path).dataobj).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {"medseg": [], "monai": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data" / "imagesTr").mkdir(parents=True)
        shutil.copy(options.image, folder / "data" / "imagesTr")
        for repeat in range(options.repeats):
            for name, command in commands(folder).items():
                times[name].append(measured([*command, str(folder / f"{name}{repeat}")]))
                print(f"  {name}: {times[name][-1][0]:.1f} CPU s, {times[name][-1][1]:.1f} s", flush=True)
        same = agreement(labels(folder / "medseg0"), labels(folder / "monai0"))
    cpu = {name: statistics.median(t[0] for t in found) for name, found in times.items()}
    wall = {name: statistics.median(t[1] for t in found) for name, found in times.items()}
    print(f"{'':<8}{'CPU s':>8}{'wall s':>8}")
    for name in times:
        print(f"{name:<8}{cpu[name]:>8.2f}{wall[name]:>8.2f}")
    ratio = {"cpu": cpu["monai"] / cpu["medseg"], "wall": wall["monai"] / wall["medseg"]}
    print(f"ratio {ratio['cpu']:.2f} (CPU), {ratio['wall']:.2f} (wall); smallest Dice between both {same:.5f}")
    if options.json:
        write_json(options.json, {"cpu_s": cpu, "wall_s": wall, "ratio": ratio, "agreement": same})


if __name__ == "__main__":
    main()
