"""What networks that have restored volumes are worth to one that segments, with few labels.

    python -m benchmarks.pretraining DATA OUTPUT

Two pairs on hippocampus: the shipped recipe from fresh weights and from ``volume_restoration_pretraining`` (``--init``,
``--rescale``); a bundle planned with ``--encoder resnet18`` from random weights and from those of a ResNet that has
restored volumes. No pretraining has seen the held-out fold. Each pair sees the same few labelled cases, drawn anew for
every draw, for as many steps; the weights of the last step are measured on the held-out fold. What is finished is not
done again. It leaves ``pretraining.md`` and ``pretraining.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.train_flagship import measure, predict
from medseg.bundle import Bundle
from medseg.evaluation.statistics import holm
from medseg.files import write_json, write_text
from medseg.planning import create_bundle
from medseg.training import fold_items, train_bundle

BUNDLES = Path(__file__).parents[1] / "bundles"
FLAGSHIP, RESTORING = BUNDLES / "hippocampus_mri_segmentation", BUNDLES / "volume_restoration_pretraining"
FOLD = 0
LENGTH = 25
"""Iterations per epoch."""
PLANNED = "hippocampus_mri_resnet"
SIDES = [32, 32, 32]
"""Patch of the ResNet: the smallest that its encoder can halve five times."""
PAIRS = (("U-Net, fresh", "U-Net that has restored"), ("ResNet-18, random", "ResNet-18 that has restored"))
WINDOW = {"inferer#roi_size": [44, 60, 44], "inferer#overlap": 0.25}
METRICS = ("dice", "hd95_mm")


@dataclass(frozen=True)
class Plan:
    """Where data and results are, and the budget that all runs share."""

    data: Path
    output: Path
    labels: int
    draws: int
    iterations: int
    pretraining_iterations: int

    @property
    def resnet(self) -> Path:
        """Weights of the ResNet that has restored volumes."""
        return self.output / "pretraining" / "checkpoints" / "final.pt"

    def folder(self, start: str, draw: int) -> Path:
        """Of one run."""
        return self.output / f"draw{draw}" / start.replace(", ", "-").replace(" ", "-")

    def length(self, iterations: int) -> dict[str, Any]:
        """Ids that make a run that long, without validation on the way."""
        epochs = iterations // LENGTH
        common = {"num_workers": 0, "precision": "fp32", "batch_size": 2, "val_interval": epochs + 1}
        return {"epochs": epochs, "iterations": LENGTH, **common}


def write_datalist(path: Path, labels: int, draw: int) -> None:
    """The held-out fold, and ``labels`` drawn cases of the others."""
    content = json.loads((FLAGSHIP / "configs" / "datalist.json").read_text())
    held_out = [item for item in content["training"] if item["fold"] == FOLD]
    others = [item for item in content["training"] if item["fold"] != FOLD]
    write_json(path, {**content, "training": held_out + random.Random(draw).sample(others, labels)})


def pretrain(plan: Plan) -> None:
    """The ResNet restores volumes, by the configuration of the restoring bundle."""
    network = {"_target_": "FlexibleUNet", "in_channels": 1, "out_channels": 1, "backbone": "resnet18"}
    train_bundle(
        RESTORING,
        dataset_dir=plan.data,
        fold=FOLD,
        output=plan.output / "pretraining",
        device="cpu",
        resume=True,
        overrides={
            **plan.length(plan.pretraining_iterations),
            "patch_size": SIDES,
            "learning_rate": 0.001,
            "network_def": {**network, "spatial_dims": 3},
        },
    )


def planned(plan: Plan) -> Path:
    """The bundle round the ResNet's weights, as ``medseg bundle new --encoder resnet18 --weights FILE`` plans it."""
    folder = plan.output / PLANNED
    if not folder.exists():
        source: dict[str, Any] = {"datalist": FLAGSHIP / "configs" / "datalist.json", "dataset_dir": plan.data}
        create_bundle(PLANNED, output=plan.output, encoder="resnet18", weights=plan.resnet, **source)
    return folder


def carry_out(plan: Plan, start: str, draw: int) -> None:
    """Train, segment the held-out fold, measure."""
    folder = plan.folder(start, draw)
    write_datalist(folder / "datalist.json", plan.labels, draw)
    overrides: dict[str, Any] = {**plan.length(plan.iterations), "seed": 20 + draw, "adversarial_share": 0.0}
    overrides["judge_steps"] = 0
    options: dict[str, Any] = {}
    bundle, window = FLAGSHIP, WINDOW
    if start.startswith("ResNet"):
        bundle, window = planned(plan), {"inferer#roi_size": [64, 64, 64], "inferer#overlap": 0.25}
        overrides |= {"patch_size": SIDES, "learning_rate": 0.001}
        fresh = {"encoder_weights": None, "encoder_rate": 1.0, "frozen_epochs": 0}
        overrides |= fresh if start.endswith("random") else {"frozen_epochs": 1, "encoder_rate": 0.3}
    elif start.endswith("restored"):
        options = {"init": RESTORING, "rescale": True}
    options |= {"datalist": folder / "datalist.json", "dataset_dir": plan.data, "fold": FOLD, "device": "cpu"}
    begun = time.process_time()
    train_bundle(bundle, output=folder / "run", overrides=overrides, resume=True, **options)
    items = fold_items(folder / "datalist.json", plan.data, FOLD, "validation")
    opened = Bundle.open(bundle)
    predict(opened, folder / "run" / "checkpoints" / "final.pt", items, folder / "predictions", **window)
    rows = measure(opened, items, folder / "predictions")
    shutil.rmtree(folder / "run" / "checkpoints")  # of a ResNet, a gigabyte
    write_json(folder / "cases.json", {"cpu_seconds": round(time.process_time() - begun, 1), "rows": rows})


def cases_of(plan: Plan, start: str, draw: int) -> list[dict[str, Any]]:
    """Rows of a finished run."""
    rows: list[dict[str, Any]] = json.loads((plan.folder(start, draw) / "cases.json").read_text())["rows"]
    return rows


def compared(plan: Plan) -> list[dict[str, Any]]:
    """One row per pair and draw, and one over the draws: means, and Wilcoxon's test over the cases (Holm: all rows)."""
    found = []
    for pair in PAIRS:
        draws = [d for d in range(plan.draws) if all((plan.folder(s, d) / "cases.json").exists() for s in pair)]
        chosen = [[d] for d in draws] + ([draws] if len(draws) > 1 else [])
        found += [_row(pair, some, *([mean_of_cases(plan, s, some) for s in pair])) for some in chosen]
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_holm"] = p
    return found


def mean_of_cases(plan: Plan, start: str, draws: Sequence[int]) -> dict[str, dict[str, float]]:
    """Metric → case → mean over structures and draws."""
    values: dict[str, dict[str, list[float]]] = {metric: {} for metric in METRICS}
    for row in (row for draw in draws for row in cases_of(plan, start, draw)):
        for metric in METRICS:
            if row[metric] is not None:
                values[metric].setdefault(row["case_id"], []).append(row[metric])
    return {metric: {case: float(np.mean(v)) for case, v in cases.items()} for metric, cases in values.items()}


def _row(pair: tuple[str, str], draws: Sequence[int], *means: dict[str, dict[str, float]]) -> dict[str, Any]:
    dice = [np.array([side["dice"][case] for case in sorted(means[0]["dice"])]) for side in means]
    gain = dice[1] - dice[0]
    return {
        "pair": list(pair),
        "draws": list(draws),
        "cases": len(gain),
        "dice": [float(side.mean()) for side in dice],
        "gain": float(gain.mean()),
        "better": int((gain > 0).sum()),
        "hd95_mm": [float(np.mean(list(side["hd95_mm"].values()))) for side in means],
        "p": float(stats.wilcoxon(gain).pvalue),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| from → from | draw | Dice | gain, points (p) | cases that gain | HD95, mm |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        lines.append(
            f"| {' → '.join(row['pair'])} | {', '.join(str(d + 1) for d in row['draws'])} | "
            f"{row['dice'][0]:.4f} → {row['dice'][1]:.4f} | {100 * row['gain']:+.2f} ({row['p_holm']:.2g}) | "
            f"{row['better']} of {row['cases']} | {row['hd95_mm'][0]:.2f} → {row['hd95_mm'][1]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def steps_of(plan: Plan) -> list[tuple[Path, Callable[[], None]]]:
    """What is to be done, each with the file that is there when it is done."""
    steps: list[tuple[Path, Callable[[], None]]] = [(plan.resnet, partial(pretrain, plan))]
    for draw in range(plan.draws):
        for start in (name for pair in PAIRS for name in pair):
            steps.append((plan.folder(start, draw) / "cases.json", partial(carry_out, plan, start, draw)))
    return steps


def main() -> None:
    """Do what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04_Hippocampus")
    parser.add_argument("output", type=Path)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--pretraining-iterations", type=int, default=200)
    parser.add_argument("--steps", type=int, help="how many runs to do now; all that are missing if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    budget = (options.labels, options.draws, options.iterations, options.pretraining_iterations)
    plan = Plan(options.data, options.output, *budget)
    missing = [step for done, step in steps_of(plan) if not done.exists()]
    for step in missing[: options.steps]:
        step()
    rows = compared(plan)
    write_json(plan.output / "pretraining.json", {"budget": vars(options) | {"data": "", "output": ""}, "rows": rows})
    write_text(plan.output / "pretraining.md", markdown(rows))
    sys.stdout.write(markdown(rows))


if __name__ == "__main__":
    main()
