"""What judging costs: a batch with and without trust, one thread, CPU seconds per case, in turn.

OMP_NUM_THREADS=1 python -m benchmarks.trust_cost bundles/hippocampus_mri_segmentation IMAGES
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from medseg.inference import Options, run_batch


def seconds_a_case(bundle: Path, images: Path, *, trust: bool) -> float:
    """CPU seconds of a whole batch, from opening the bundle to the last file, per case."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        report = run_batch(bundle, [images], Path(folder), Options(precision="fp32", trust=trust))
        return (time.process_time() - begin) / len(report.content["cases"])


def main() -> None:
    """Medians over the repeats, and what trust adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.repeats):
        for trust, seconds in found.items():
            seconds.append(seconds_a_case(options.bundle, options.images, trust=trust))
    judged, plain = (statistics.median(found[trust]) for trust in (True, False))
    print(f"with trust {judged:.3f} s, without {plain:.3f} s a case: {judged / plain - 1:.0%} more")


if __name__ == "__main__":
    main()
