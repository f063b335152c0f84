"""Time of the fused spatial transform against MONAI's affine and elastic transforms, per 48³ patch.

    python -m benchmarks.bench_spatial [--repeats 15] [--json FILE]

Image and label together, one thread, CPU seconds, interleaved in one process, medians. Every transform is always
applied; MONAI's elastic transform also rotates and scales, so one of its calls does the work of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, Rand3DElasticd, RandAffined

from medseg.files import write_json
from medseg.transforms import RandSpatiald

SIZE = (48, 48, 48)
KEYS = ("image", "label")
MODES = ("bilinear", "nearest")


def transforms() -> dict[str, Callable[[Any], Any]]:
    """The peers, with comparable ranges."""
    ranges: dict[str, Any] = {"rotate_range": [0.3] * 3, "scale_range": [0.2] * 3}
    affine = RandAffined(KEYS, prob=1.0, mode=MODES, spatial_size=SIZE, padding_mode="zeros", **ranges)
    elastic = Rand3DElasticd(
        KEYS, (4, 6), (2, 8), prob=1.0, mode=MODES, spatial_size=SIZE, padding_mode="zeros", **ranges
    )
    plain = Rand3DElasticd(KEYS, (4, 6), (2, 8), prob=1.0, mode=MODES, spatial_size=SIZE, padding_mode="zeros")
    ours: dict[str, Any] = {"mode": MODES, "prob_affine": 1.0, "rotate_range": 0.3, "scale_range": 0.2}
    return {
        "medseg affine": RandSpatiald(KEYS, SIZE, prob_elastic=0.0, **ours),
        "medseg affine + elastic": RandSpatiald(KEYS, SIZE, prob_elastic=1.0, **ours),
        "MONAI RandAffined": affine,
        "MONAI Rand3DElasticd with affine": elastic,
        "MONAI RandAffined, Rand3DElasticd": Compose([affine, plain]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = {"image": torch.randn(1, *SIZE), "label": (torch.rand(1, *SIZE) > 0.5).float()}
    peers = transforms()
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for repeat in range(options.repeats + 1):
        for name, transform in peers.items():
            begun = time.process_time()
            transform(case)
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - begun)
    medians = {name: statistics.median(values) * 1000.0 for name, values in seconds.items()}
    fused = medians["medseg affine + elastic"]
    for name, milliseconds in medians.items():
        print(f"{name:36s} {milliseconds:8.1f} ms {milliseconds / fused:6.2f} ×")
    if options.json:
        write_json(options.json, {"size": SIZE, "repeats": options.repeats, "milliseconds": medians})


if __name__ == "__main__":
    main()
