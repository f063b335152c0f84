"""What 8-bit integers cost and gain on a trained task: the hippocampus bundle on cases that it has not seen.

``python -m benchmarks.bench_int8 DATA [--cases 30] [--learn 12] [--json FILE]``

DATA is the folder of MSD Task04_Hippocampus. The first cases of the held-out fold 0 are labelled in torch's float32,
OpenVINO's float32, and OpenVINO's integers, learnt once as ``medseg infer`` does (from the first case) and once from
``--learn`` training cases. The variants take turns on each case, in one process on one thread. The table shows Dice
with the reference labels, the smallest Dice with float32 over all cases, and CPU seconds of the network alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from benchmarks.agreement import agreement
from medseg.bundle import Bundle
from medseg.evaluation import evaluate_case
from medseg.files import write_json
from medseg.inference import Predictor
from medseg.inference.choice import EngineChoice
from medseg.inference.engines import REFERENCE
from medseg.inference.ensemble import TTAView
from medseg.inference.quantised import QuantisedEngine, place_of
from medseg.inference.sliding_window import sliding_window, spread_windows
from medseg.ingest import read_volume
from medseg.training import fold_items

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
_ONE_CASE, _MANY_CASES = "OpenVINO int8, one case", "OpenVINO int8, training cases"


def load(file: str) -> MetaTensor:
    """An image ``(1, H, W, D)`` with its affine."""
    array, geometry, _ = read_volume(file)
    return MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=np.array(geometry.affine))


def predictors(bundle: Bundle, training: list[str], folder: Path) -> dict[str, Predictor]:
    """One predictor for each way of computing."""
    ways = {
        "torch fp32": REFERENCE,
        "torch fp32, channels last": "torch-fp32-channels-last",
        "OpenVINO fp32": "openvino-fp32",
    }
    found = {name: Predictor(bundle) for name in ways}
    for name, way in ways.items():
        found[name].use(EngineChoice(way))
    found[_ONE_CASE] = Predictor(bundle, precision="int8")
    engine = QuantisedEngine(bundle.load_network(), place_of(folder, bundle.sha256))
    engine.calibrate([window for file in training for window in _windows(found["torch fp32"], file)])
    found[_MANY_CASES] = Predictor(bundle, precision="int8", folder=folder)
    return found


def _windows(predictor: Predictor, file: str) -> Iterator[torch.Tensor]:
    volume = predictor.prepare(load(file)).as_tensor().float()
    return spread_windows(volume, predictor.networks.own_windows, 1)


def network_seconds(predictor: Predictor, image: MetaTensor) -> float:
    """CPU seconds of the network and of stitching."""
    volume = predictor.prepare(image).as_tensor().float()
    scores_of = predictor.networks.averaged([TTAView(0)])
    begin = time.process_time()
    for _ in sliding_window(volume, predictor.networks.windows(volume), scores_of):
        pass
    return time.process_time() - begin


def measure(found: dict[str, Predictor], items: list[dict[str, Any]], labels: dict[int, str]) -> list[dict[str, Any]]:
    """One row per variant and case."""
    rows = []
    for item in items:
        image, reference = load(item["image"]), read_volume(item["label"])
        truth, spacing_mm = reference[0].astype(np.uint8), reference[1].spacing_mm
        first = None
        for name, predictor in found.items():
            map_ = predictor.predict(image).label_map
            first = map_ if first is None else first
            dice = {result.name: result.values["dice"] for result in evaluate_case(map_, truth, spacing_mm, labels)}
            same = agreement(map_.astype(int), first.astype(int))
            rows.append({"variant": name, "same": same, "seconds": network_seconds(predictor, image), **dice})
    return rows


def summarise(rows: list[dict[str, Any]], structures: list[str]) -> list[dict[str, Any]]:
    """One row per variant."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    chosen = {name: [row for row in rows if row["variant"] == name] for name in variants}
    medians = {name: statistics.median(row["seconds"] for row in part) for name, part in chosen.items()}
    return [
        {
            "variant": name,
            "cpu_seconds": medians[name],
            "ratio": medians[variants[0]] / medians[name],
            "dice": {s: statistics.mean(row[s] for row in part) for s in structures},
            "same_mean": statistics.mean(row["same"] for row in part),
            "same_smallest": min(row["same"] for row in part),
        }
        for name, part in chosen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--learn", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle, datalist = Bundle.open(BUNDLE), BUNDLE / "configs" / "datalist.json"
    items = fold_items(datalist, options.data, 0, "validation", options.cases)
    training = [item["image"] for item in fold_items(datalist, options.data, 0, "training", options.learn)]
    structures = list(bundle.labels.values())
    with tempfile.TemporaryDirectory() as folder:
        rows = summarise(measure(predictors(bundle, training, Path(folder)), items, bundle.labels), structures)
    print(f"{'variant':<32}{'CPU s':>8}{'ratio':>8}{'smallest, mean Dice with fp32':>32}  Dice with the reference")
    for row in rows:
        dice = ", ".join(f"{name} {value:.4f}" for name, value in row["dice"].items())
        same = f"{row['same_smallest']:.4f}, {row['same_mean']:.4f}"
        print(f"{row['variant']:<32}{row['cpu_seconds']:>8.3f}{row['ratio']:>8.2f}{same:>32}  {dice}")
    if options.json:
        write_json(options.json, {"cases": len(items), "learn": len(training), "rows": rows})


if __name__ == "__main__":
    main()
