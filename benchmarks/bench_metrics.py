"""How fast all metrics together are, against MONAI's HD95 with MeanDice and google's surface-distance.

Prints a table and writes ``bench_metrics.json``. Run it as ``python -m benchmarks.bench_metrics``; with
surface-distance installed (``pip install --no-deps surface-distance``) it is measured too. CPU seconds on one thread,
the peers take turns, medians. medseg starts from label maps; the peers are given one mask per structure, made
outside the measurement.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from numpy.typing import NDArray

from medseg.evaluation import Definitions, evaluate_case
from medseg.files import write_json

LabelMap = NDArray[np.uint8]

SHAPE = (512, 512, 200)
SPACING_MM = (0.8, 0.8, 1.5)
N_STRUCTURES = 14


def structures(shape: tuple[int, int, int], n: int, off: float, seed: int = 0) -> LabelMap:
    """``n`` ellipsoids; with ``off`` above 0 each is moved and stretched by about that many voxels."""
    places, changes = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    volume = np.zeros(shape, np.uint8)
    size = np.array(shape)
    for label in range(1, n + 1):
        radii = places.uniform(0.04, 0.12) * size * places.uniform(0.7, 1.0, 3)
        centre = places.uniform(radii, size - radii)
        centre, radii = centre + off * changes.normal(size=3), radii + off * changes.normal(size=3)
        low, high = np.maximum(centre - radii - 1, 0).astype(int), np.minimum(centre + radii + 2, size).astype(int)
        grid = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1
        volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][inside] = label
    return volume


def cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def with_medseg(prediction: LabelMap, reference: LabelMap, definitions: Definitions) -> None:
    evaluate_case(prediction, reference, SPACING_MM, range(1, N_STRUCTURES + 1), definitions=definitions)


def with_monai(prediction: LabelMap, reference: LabelMap) -> float:
    """HD95 and MeanDice; one channel at a time, since fourteen at once need 6 GB. The one-hot step is not counted."""
    spent = 0.0
    for label in range(1, N_STRUCTURES + 1):
        p, r = (torch.from_numpy(volume == label)[None, None].float() for volume in (prediction, reference))
        hausdorff, dice = HausdorffDistanceMetric(include_background=True, percentile=95), DiceMetric()
        spent += cpu_seconds(lambda p=p, r=r, metric=hausdorff: metric(p, r, spacing=SPACING_MM))  # type: ignore[misc]
        spent += cpu_seconds(lambda p=p, r=r, metric=dice: metric(p, r))  # type: ignore[misc]
    return spent


def with_surface_distance(peer: Any, prediction: LabelMap, reference: LabelMap) -> float:
    """HD, HD95, ASSD, NSD and Dice of the non-empty pairs (version 0.1 crashes on empty masks)."""
    spent = 0.0
    for label in range(1, N_STRUCTURES + 1):
        p, r = prediction == label, reference == label

        def measure(p: NDArray[np.bool_] = p, r: NDArray[np.bool_] = r) -> None:
            distances = peer.compute_surface_distances(r, p, SPACING_MM)
            peer.compute_robust_hausdorff(distances, 100)
            peer.compute_robust_hausdorff(distances, 95)
            peer.compute_average_surface_distance(distances)
            peer.compute_surface_dice_at_tolerance(distances, 1.0)
            peer.compute_dice_coefficient(r, p)

        if p.any() and r.any():
            spent += cpu_seconds(measure)
    return spent


def surface_distance_package() -> Any | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import surface_distance
        except ImportError:
            return None
    return surface_distance


def large_case(repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant on 14 structures."""
    reference, prediction = structures(SHAPE, N_STRUCTURES, 0.0), structures(SHAPE, N_STRUCTURES, 1.0)
    peer = surface_distance_package()
    contestants: dict[str, Callable[[], float]] = {
        "medseg": lambda: cpu_seconds(lambda: with_medseg(prediction, reference, Definitions())),
        "medseg, surface elements": lambda: cpu_seconds(
            lambda: with_medseg(prediction, reference, Definitions(surface="elements"))
        ),
    }
    if peer is not None:
        contestants["surface-distance"] = lambda: with_surface_distance(peer, prediction, reference)
    contestants["MONAI, HD95 and MeanDice"] = lambda: with_monai(prediction, reference)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            times[name].append(run())
            print(f"{name}: {times[name][-1]:.2f} s", flush=True)
    return times


def small_case() -> float:
    """CPU milliseconds of one case as large as a hippocampus crop, two structures, median of 50."""
    reference, prediction = structures((36, 50, 35), 2, 0.0), structures((36, 50, 35), 2, 0.5)
    return 1000 * statistics.median(
        cpu_seconds(lambda: evaluate_case(prediction, reference, (1.0, 1.0, 1.0), [1, 2])) for _ in range(50)
    )


def peak_mb() -> float:
    """Memory that medseg takes beside the two label maps, in MB."""
    reference, prediction = structures(SHAPE, N_STRUCTURES, 0.0), structures(SHAPE, N_STRUCTURES, 1.0)
    tracemalloc.start()
    with_medseg(prediction, reference, Definitions())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench_metrics.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times = large_case(arguments.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{N_STRUCTURES} structures in {'×'.join(map(str, SHAPE))}, CPU seconds, median of {arguments.repeats}")
    for name, seconds in medians.items():
        print(f"{name:28s} {seconds:8.2f} s  {seconds / medians['medseg']:6.1f}×")
    result = {
        "cpu_seconds": times,
        "ratios": {name: seconds / medians["medseg"] for name, seconds in medians.items()},
        "hippocampus_ms": small_case(),
        "peak_mb": peak_mb(),
    }
    print(f"one case of 36×50×35 with two structures: {result['hippocampus_ms']:.1f} ms")
    print(f"memory beside the label maps: {result['peak_mb']:.0f} MB")
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
