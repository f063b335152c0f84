"""Two human raters over 21 organs, measured by medseg, MONAI and surface-distance side by side.

The data are the masks of an oncologist and a radiographer on two head-and-neck CTs (deepmind/tcia-ct-scan-dataset,
CC BY 4.0; Nikolov et al., arXiv:1809.04430). Run it as
``MEDSEG_TEST_DATA=... python -m benchmarks.two_raters``; prints a Markdown table and writes ``two_raters.json``.
With ``--consensus`` it prints instead how far each rater is from what both agree on, by majority and by STAPLE; organs
can be named then.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric
from numpy.typing import NDArray

from benchmarks.bench_metrics import surface_distance_package
from medseg.evaluation import Definitions, evaluate_case
from medseg.files import write_json
from medseg.ingest import read_volume
from medseg.labels.label_map import find_boxes
from medseg.labels.raters import majority, staple

TOLERANCE_MM = 2.0
RATERS = ("oncologist", "radiographer")
COLUMNS = {
    "Dice": ("medseg", "MONAI"),
    "HD95": ("medseg", "MONAI", "medseg elements", "surface-distance"),
    "NSD": ("medseg", "MONAI", "medseg elements", "surface-distance"),
}

Mask = NDArray[np.bool_]


def masks(folder: Path, case: str, organ: str) -> tuple[Mask, Mask, tuple[float, float, float]]:
    """The second rater's mask as prediction, the first rater's as reference, and the spacing in mm.

    Cut to the box of both with a margin: no distance changes, and the peers need not walk through the whole image.
    """
    found, spacing_mm = [], (0.0, 0.0, 0.0)
    for rater in RATERS:
        array, geometry, _ = read_volume(folder / rater / case / "segmentations" / f"{organ}.nrrd")
        found.append(np.ascontiguousarray(array > 0))
        spacing_mm = geometry.spacing_mm
    box = tuple(
        slice(max(side.start - 2, 0), side.stop + 2) for side in find_boxes((found[0] | found[1]).view(np.uint8))[1]
    )
    return found[1][box], found[0][box], spacing_mm


def by_medseg(prediction: Mask, reference: Mask, spacing_mm: Any, surface: Any) -> dict[str, float | None]:
    [row] = evaluate_case(
        prediction, reference, spacing_mm, [1], TOLERANCE_MM, definitions=Definitions(surface=surface)
    )
    return {"Dice": row.dice, "HD95": row.hd95_mm, "NSD": row.nsd}


def by_monai(prediction: Mask, reference: Mask, spacing_mm: Any) -> dict[str, float | None]:
    p, r = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    surface = SurfaceDiceMetric([TOLERANCE_MM], include_background=True)
    return {
        "Dice": DiceMetric()(p, r).item(),
        "HD95": HausdorffDistanceMetric(include_background=True, percentile=95)(p, r, spacing=spacing_mm).item(),
        "NSD": surface(p, r, spacing=spacing_mm).item(),
    }


def by_surface_distance(peer: Any, prediction: Mask, reference: Mask, spacing_mm: Any) -> dict[str, float | None]:
    if not prediction.any() or not reference.any():  # version 0.1 crashes on empty masks
        return {}
    distances = peer.compute_surface_distances(reference, prediction, spacing_mm)
    return {
        "HD95": float(peer.compute_robust_hausdorff(distances, 95)),
        "NSD": float(peer.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)),
    }


def measure(folder: Path, case: str, organ: str) -> dict[str, dict[str, float | None]]:
    prediction, reference, spacing_mm = masks(folder, case, organ)
    peer = surface_distance_package()
    return {
        "medseg": by_medseg(prediction, reference, spacing_mm, "voxels"),
        "MONAI": by_monai(prediction, reference, spacing_mm),
        "medseg elements": by_medseg(prediction, reference, spacing_mm, "elements"),
        "surface-distance": by_surface_distance(peer, prediction, reference, spacing_mm) if peer else {},
    }


def against_consensus(folder: Path, case: str, organ: str) -> dict[str, dict[str, float | None]]:
    """Each rater against the label that both give, and against STAPLE's."""
    second, first, spacing_mm = masks(folder, case, organ)
    drawn = {RATERS[0]: first.view(np.uint8), RATERS[1]: second.view(np.uint8)}
    agreed = {"majority": majority(list(drawn.values())), "STAPLE": staple(list(drawn.values()))}
    return {
        f"{rater} – {way}": by_medseg(mask > 0, found > 0, spacing_mm, "voxels")
        for way, found in agreed.items()
        for rater, mask in drawn.items()
    }


def consensus_table(folder: Path, organs: list[str]) -> str:
    """Markdown: one row per organ, means over the cases; Dice, HD95 in mm and NSD in each cell."""
    heads = [f"{rater} – {way}" for way in ("majority", "STAPLE") for rater in RATERS]
    lines = ["| organ | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for organ in organs:
        cases = [against_consensus(folder, path.name, organ) for path in sorted((folder / RATERS[0]).iterdir())]
        cells = []
        for head in heads:
            figures = ([case[head][metric] for case in cases] for metric in ("Dice", "HD95", "NSD"))
            dice, hd95_mm, nsd = (np.array(values, dtype=np.float64).mean() for values in figures)
            cells.append(f"{dice:.3f}, {hd95_mm:.2f}, {nsd:.3f}")
        lines.append(f"| {organ} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(results: dict[str, list[dict[str, dict[str, float | None]]]]) -> str:
    """Markdown: one row per organ, means over the cases."""
    heads = [f"{metric} {tool}" for metric, tools in COLUMNS.items() for tool in tools]
    lines = ["| organ | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for organ, cases in sorted(results.items()):
        cells = []
        for metric, tools in COLUMNS.items():
            for tool in tools:
                values = [case[tool].get(metric) for case in cases]
                known = [value for value in values if value is not None and np.isfinite(value)]
                cells.append(f"{np.mean(known):.{2 if metric == 'HD95' else 3}f}" if known else "–")
        lines.append(f"| {organ} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("two_raters.json"))
    parser.add_argument("--consensus", nargs="*", metavar="ORGAN")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ["MEDSEG_TEST_DATA"]) / "deepmind_hn_two_raters" / "nrrds" / "test"
    if arguments.consensus is not None:
        every = sorted(path.stem for path in next((folder / RATERS[0]).iterdir()).joinpath("segmentations").iterdir())
        print(consensus_table(folder, arguments.consensus or every))
        return
    results: dict[str, list[dict[str, dict[str, float | None]]]] = {}
    for case in sorted(path.name for path in (folder / RATERS[0]).iterdir()):
        for organ in sorted(path.stem for path in (folder / RATERS[0] / case / "segmentations").iterdir()):
            results.setdefault(organ, []).append(measure(folder, case, organ))
            print(case, organ, flush=True, file=sys.stderr)
    print(table(results))
    write_json(arguments.output, results)


if __name__ == "__main__":
    main()
