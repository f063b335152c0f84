"""Which cases the runs of the ablation see: drawn ones, images without labels, a teacher's labels, corrupted ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.files import write_json
from medseg.training import fold_items

FOLD = 0
"""Held out: every run is measured on it."""


def write_datalist(bundle: Path, path: Path, labels: int, draw: int, *, unlabelled: bool) -> None:
    """The held-out fold, ``labels`` drawn cases of the others (0: all), and the images of all others if asked for."""
    content = _datalist(bundle)
    held_out = [item for item in content["training"] if item["fold"] == FOLD]
    others = [item for item in content["training"] if item["fold"] != FOLD]
    chosen = sorted(random.Random(draw).sample(range(len(others)), labels or len(others)))
    content["training"] = held_out + [others[i] for i in chosen]
    content["unlabelled"] = [{"image": item["image"], "fold": item["fold"]} for item in others] if unlabelled else []
    write_json(path, content)


def write_taught_datalist(
    bundle: Path,
    path: Path,
    teacher: Path,
    data: Path,
    taught_for_each: int,
    predict: Callable[[list[dict[str, Any]], Path], None],
) -> None:
    """The drawn cases, and the others as often with the labels that the network in ``teacher`` gives them.

    A patch of a drawn case comes with ``taught_for_each`` of the others. ``predict`` segments cases into a folder.
    """
    content = json.loads((teacher / "datalist.json").read_text())
    drawn = [item for item in content["training"] if item["fold"] != FOLD]
    seen = {item["image"] for item in drawn}
    others = [item for item in _datalist(bundle)["training"] if item["fold"] != FOLD and item["image"] not in seen]
    names = {Path(item["image"]).name for item in others}
    every = fold_items(bundle / "configs" / "datalist.json", data, FOLD, "training")
    items = [item for item in every if Path(item["image"]).name in names]
    folder = teacher / "labelled"
    if len(list(folder.glob("*_seg.nii.gz"))) < len(items):
        predict(items, folder)
    for item in others:
        item["label"] = str((folder / (Path(item["image"]).name.removesuffix(".nii.gz") + "_seg.nii.gz")).resolve())
    held_out = [item for item in content["training"] if item["fold"] == FOLD]
    times = max(1, round(len(others) / len(drawn) / taught_for_each))
    write_json(path, {**content, "training": held_out + drawn * times + others, "unlabelled": []})


def write_pretraining_datalist(bundle: Path, path: Path) -> None:
    """Every case with its own image as the label: what is to be restored."""
    content = _datalist(bundle)
    content["training"] = [{**item, "label": item["image"]} for item in content["training"]]
    write_json(path, content)


def _datalist(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "configs" / "datalist.json").read_text())
    return content


def restoring(config: dict[str, Any]) -> dict[str, Any]:
    """Ids that turn the flagship's configuration into that of the same U-Net, which restores corrupted volumes."""
    return {
        "batch_size": 4,
        "adversarial_share": 0.0,
        "network_def": {**config["network_def"], "out_channels": 1},
        "loss": {"_target_": "torch.nn.L1Loss"},
        "train#preprocessing_transforms": [
            {"_target_": "DeleteItemsd", "keys": "label"},
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing_mm", "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image", "track_meta": False},
        ],
        "train#augmentation_transforms": _corruption(),
    }


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
