"""What is the adversarial part worth? Variants of the hippocampus recipe with few, more and all labels.

    python -m benchmarks.ablation DATA OUTPUT --jobs 2

Every run but the one that says otherwise sees as many labelled patches; the weights of its last iteration (moving
average) are measured on one held-out fold. Unlabelled images are those of the other folds. Self-training sees beside
every labelled image one that a finished network of the same draw has labelled, long self-training three.
It continues where it was stopped, and what is finished is not done again. It leaves ``ablation.md`` (the table),
``ablation.json`` (with the tests) and ``ablation.csv`` (one row per case and structure).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.ablation_table import measure_case, write_tables

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
FOLD = 0
LENGTH = 50
"""Iterations per epoch, and between checkpoints."""
WINDOW = {"inferer#roi_size": [44, 60, 44], "inferer#overlap": 0.25}
"""Nearly every crop in one window: a third of the cost of the bundle's windows, for the same Dice."""


@dataclass(frozen=True)
class Variant:
    """What is added to plain supervised training."""

    pretrained: str = ""  # which network has learnt to restore volumes before: "autoencoder" or "unet"
    rescaled: bool = False  # and its weights start with the size of fresh ones
    adversarial: bool = False
    unlabelled: bool = False  # the discriminator judges predictions on images without labels
    teacher: bool = False  # and the moving average of the weights labels them
    taught: str = ""  # the variant whose finished network has labelled the images without labels
    steps: int = 1  # optimiser steps for each one of plain training; a taught variant sees as many labels in them


VARIANTS = {
    "plain": Variant(),
    "+ adversarial": Variant(adversarial=True),
    "+ autoencoder": Variant(pretrained="autoencoder"),
    "+ autoencoder, adversarial": Variant(pretrained="autoencoder", adversarial=True),
    "semi-supervised": Variant(adversarial=True, unlabelled=True),
    "self-training": Variant(taught="plain"),
    "+ autoencoder, adversarial, self-training": Variant(
        pretrained="autoencoder", adversarial=True, taught="+ autoencoder, adversarial"
    ),
    "long self-training": Variant(taught="plain", steps=4),
    "+ autoencoder, rescaled": Variant(pretrained="autoencoder", rescaled=True),
    "+ restoring U-Net": Variant(pretrained="unet"),
    "+ restoring U-Net, rescaled": Variant(pretrained="unet", rescaled=True),
    "full recipe": Variant("unet", rescaled=True, adversarial=True, taught="+ restoring U-Net, rescaled", steps=4),
    "full recipe, second student": Variant("unet", rescaled=True, adversarial=True, taught="full recipe", steps=4),
    "plain, four times as long": Variant(steps=4),
    "mean teacher": Variant(unlabelled=True, teacher=True),
}
USUAL = [name for name in VARIANTS if name not in {"+ autoencoder, rescaled", "mean teacher"}]


@dataclass(frozen=True)
class Run:
    """One training run; ``labels`` 0 means all."""

    variant: str
    labels: int
    draw: int

    @property
    def folder(self) -> str:
        name = self.variant.replace("+ ", "").replace(",", "").replace(" ", "-")
        return f"{self.labels or 'all'}-labels/draw{self.draw}/{name}"


@dataclass(frozen=True)
class Plan:
    """Where data and results are, and the budget that all runs share."""

    data: Path
    output: Path  # with a copy of the bundle, so that a table is finished with the recipe that it was begun with
    iterations: int
    batch_size: int
    pretraining_iterations: int
    adversarial_share: float

    @property
    def bundle(self) -> Path:
        return self.output / "bundle"

    def overrides(self, run: Run) -> dict[str, Any]:
        variant = VARIANTS[run.variant]
        total = self.iterations * variant.steps
        return {
            **self._length(total),
            # in the same number of steps: beside every labelled image one that a teacher has labelled
            "batch_size": self.batch_size * (2 if variant.taught and variant.steps == 1 else 1),
            "seed": 20 + run.draw,
            "adversarial_share": self.adversarial_share if variant.adversarial else 0.0,
            "warm_up": total * 3 // 8,
            "ramp": total // 4,
            "consistency_weight": 1.0 if variant.teacher else 0.0,
            "consistency_start": total // 2,
            "consistency_ramp": total // 4,
        }

    def pretraining(self, kind: str) -> Path:
        """Where the network that restores volumes is trained."""
        return self.output / f"pretraining-{kind}"

    def pretraining_overrides(self, kind: str) -> dict[str, Any]:
        """The flagship's configuration, turned into one that restores corrupted volumes."""
        network = json.loads((self.bundle / "configs" / "train.json").read_text())["network_def"]
        if kind == "autoencoder":
            network["_target_"] = "medseg.networks.Autoencoder"
        return {
            **self._length(self.pretraining_iterations),
            "batch_size": 4,
            "adversarial_share": 0.0,
            "network_def": {**network, "out_channels": 1},
            "loss": {"_target_": "torch.nn.L1Loss"},
            "train#preprocessing_transforms": _reading(),
            "train#augmentation_transforms": _corruption(),
        }

    @staticmethod
    def _length(iterations: int) -> dict[str, Any]:
        epochs = iterations // LENGTH
        return {"epochs": epochs, "iterations": LENGTH, "val_interval": epochs + 1, "num_workers": 0}


def _reading() -> list[dict[str, Any]]:
    return [
        {"_target_": "DeleteItemsd", "keys": "label"},
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing_mm", "mode": "bilinear"},
        {"_target_": "NormalizeIntensityd", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": "image", "track_meta": False},
    ]


def _corruption() -> list[dict[str, Any]]:
    """Deform, keep that as the target (``label``), then blur, add noise and cut blocks out of the input."""
    spatial = {"_target_": "medseg.transforms.RandSpatiald", "keys": "image", "patch_size": "@patch_size", "margin": 3}
    blocks = {"spatial_size": 6, "max_spatial_size": 16, "holes": 4, "max_holes": 10, "prob": 0.9}
    return [
        {**spatial, "rotate_range": 0.35, "scale_range": 0.2, "shear_range": 0.1, "prob_elastic": 0.2},
        {"_target_": "CopyItemsd", "keys": "image", "names": "label"},
        {"_target_": "RandGaussianSmoothd", "keys": "image", "prob": 0.3},
        {"_target_": "RandGaussianNoised", "keys": "image", "std": 0.5, "prob": 0.8},
        {"_target_": "RandCoarseDropoutd", "keys": "image", "fill_value": 0, **blocks},
        {"_target_": "EnsureTyped", "keys": ["image", "label"], "track_meta": False},
    ]


def write_datalist(path: Path, labels: int, draw: int, *, unlabelled: bool) -> None:
    """The held-out fold, ``labels`` drawn cases of the others (0: all), and the images of all others if asked for."""
    from medseg.files import write_json

    content = json.loads((BUNDLE / "configs" / "datalist.json").read_text())
    held_out = [item for item in content["training"] if item["fold"] == FOLD]
    others = [item for item in content["training"] if item["fold"] != FOLD]
    chosen = sorted(random.Random(draw).sample(range(len(others)), labels or len(others)))
    content["training"] = held_out + [others[i] for i in chosen]
    content["unlabelled"] = [{"image": item["image"], "fold": item["fold"]} for item in others] if unlabelled else []
    write_json(path, content)


def write_taught_datalist(plan: Plan, run: Run, path: Path) -> None:
    """The drawn cases, and the others as often with the labels that a finished network gives them."""
    from benchmarks.train_flagship import predict
    from medseg.bundle import Bundle
    from medseg.files import write_json
    from medseg.training import fold_items

    teacher = plan.output / replace(run, variant=VARIANTS[run.variant].taught).folder
    content = json.loads((teacher / "datalist.json").read_text())
    drawn = [item for item in content["training"] if item["fold"] != FOLD]
    seen = {item["image"] for item in drawn}
    write_datalist(path, 0, 0, unlabelled=False)
    others = [i for i in json.loads(path.read_text())["training"] if i["fold"] != FOLD and i["image"] not in seen]
    names = {Path(item["image"]).name for item in others}
    items = [item for item in fold_items(path, plan.data, FOLD, "training") if Path(item["image"]).name in names]
    folder = teacher / "labelled"
    if len(list(folder.glob("*_seg.nii.gz"))) < len(items):
        predict(Bundle.open(plan.bundle), teacher / "checkpoints" / "final.pt", items, folder, **WINDOW)
    for item in others:
        item["label"] = str((folder / (Path(item["image"]).name.removesuffix(".nii.gz") + "_seg.nii.gz")).resolve())
    held_out = [item for item in content["training"] if item["fold"] == FOLD]
    taught_for_each = max(1, VARIANTS[run.variant].steps - 1)
    times = max(1, round(len(others) / len(drawn) / taught_for_each))
    write_json(path, {**content, "training": held_out + drawn * times + others, "unlabelled": []})


def write_pretraining_datalist(path: Path) -> None:
    """Every case with its own image as the label: what is to be restored."""
    from medseg.files import write_json

    content = json.loads((BUNDLE / "configs" / "datalist.json").read_text())
    content["training"] = [{**item, "label": item["image"]} for item in content["training"]]
    write_json(path, content)


def pretrain(plan: Plan, kind: str) -> None:
    """Train a network that restores volumes on all images of the training folds."""
    from medseg.training import train_bundle

    folder = plan.pretraining(kind)
    folder.mkdir(parents=True, exist_ok=True)
    write_pretraining_datalist(folder / "datalist.json")
    options: dict[str, Any] = {"dataset_dir": plan.data, "fold": FOLD, "output": folder, "resume": True}
    train_bundle(plan.bundle, datalist=folder / "datalist.json", overrides=plan.pretraining_overrides(kind), **options)


def carry_out(plan: Plan, run: Run) -> str:
    """Train (or go on), segment the held-out fold, measure; returns a line about it."""
    import torch

    from benchmarks.train_flagship import predict
    from medseg.bundle import Bundle
    from medseg.files import write_json
    from medseg.training import fold_items, train_bundle

    torch.set_num_threads(1)
    begun = time.process_time()
    folder, variant = plan.output / run.folder, VARIANTS[run.variant]
    folder.mkdir(parents=True, exist_ok=True)
    datalist = folder / "datalist.json"
    if variant.taught:
        write_taught_datalist(plan, run, datalist)
    else:
        write_datalist(datalist, run.labels, run.draw, unlabelled=variant.unlabelled)
    train_bundle(
        plan.bundle,
        datalist=datalist,
        dataset_dir=plan.data,
        fold=FOLD,
        output=folder,
        resume=True,
        overrides=plan.overrides(run),
        init=plan.pretraining(variant.pretrained) / "checkpoints" / "final.pt" if variant.pretrained else None,
        rescale=variant.rescaled,
    )
    items = fold_items(datalist, plan.data, FOLD, "validation")
    bundle = Bundle.open(plan.bundle)
    predict(bundle, folder / "checkpoints" / "final.pt", items, folder / "predictions", **WINDOW)
    rows = [row for item in items for row in measure_case(item, folder / "predictions", bundle.labels)]
    seconds = time.process_time() - begun
    write_json(folder / "cases.json", {"run": vars(run), "cpu_seconds": round(seconds, 1), "rows": rows})
    dice = sum(row["dice"] for row in rows) / len(rows)
    return f"{run.folder}: Dice {dice:.4f}, {seconds / 60:.1f} core-minutes"


def generation_of(variant: str) -> int:
    """0 for what learns from labels alone, 1 for its students, 2 for theirs."""
    taught = VARIANTS[variant].taught
    return 1 + generation_of(taught) if taught else 0


def planned_runs(options: argparse.Namespace) -> list[Run]:
    """All runs, in the order of ``--labels``; of all labels there is none left for a teacher to give."""
    draws = dict(zip(options.labels, options.draws, strict=True))
    pairs = [(labels, draw) for labels in options.labels for draw in range(draws[labels])]
    runs = [Run(variant, labels, draw) for labels, draw in pairs for variant in options.variants]
    return [run for run in runs if run.labels or not VARIANTS[run.variant].taught]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04_Hippocampus")
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--variants", nargs="+", default=USUAL, choices=list(VARIANTS))
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 50, 0], help="labelled cases; 0 means all")
    parser.add_argument(
        "--draws", nargs="+", type=int, default=[3, 1, 1], help="draws, one number for each of --labels"
    )
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--pretraining-iterations", type=int, default=1000)
    parser.add_argument("--adversarial-share", type=float, default=0.1)
    options = parser.parse_args()
    if (
        len(options.draws) != len(options.labels)
        or options.iterations % LENGTH
        or options.pretraining_iterations % LENGTH
    ):
        parser.error(f"--draws needs one number for each of --labels, and iterations are multiples of {LENGTH}")
    return options


def carry_out_all(pool: ProcessPoolExecutor, plan: Plan, runs: list[Run], folders: list[str]) -> int:
    """Carry out runs at the same time, tell of each, keep the tables up to date; how many failed."""
    failed = 0
    jobs = {pool.submit(carry_out, plan, run): run for run in runs}
    for job in as_completed(jobs):
        if error := job.exception():
            failed += 1
            print(f"{jobs[job].folder}: {type(error).__name__}: {error}", flush=True)
            continue
        print(job.result(), flush=True)
        write_tables(plan.output, folders)
    return failed


def main() -> None:
    """Pretrain once, run what is missing, write the tables."""
    options = parse()
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})  # of the worker processes
    budget = (options.iterations, options.batch_size, options.pretraining_iterations, options.adversarial_share)
    plan = Plan(options.data, options.output, *budget)
    if not plan.bundle.exists():
        shutil.copytree(BUNDLE, plan.bundle, ignore=shutil.ignore_patterns("models", "trust", "runs"))
    runs = planned_runs(options)
    folders = [run.folder for run in runs]
    missing = [run for run in runs if not (plan.output / run.folder / "cases.json").exists()]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        kinds = sorted({VARIANTS[run.variant].pretrained for run in missing} - {""})
        for started in [pool.submit(pretrain, plan, kind) for kind in kinds]:
            started.result()
        failed = 0
        for labels in options.labels:
            mine = [run for run in missing if run.labels == labels]
            for generation in range(3):  # teachers first
                now = [run for run in mine if generation_of(run.variant) == generation]
                failed += carry_out_all(pool, plan, now, folders)
    write_tables(plan.output, folders)
    print((plan.output / "ablation.md").read_text())
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
