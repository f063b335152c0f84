"""How well the autoencoder bundle restores held-out volumes, corruption by corruption.

    python -m benchmarks.restoration bundles/volume_autoencoder_pretraining DATA OUTPUT --cases 12

Every kind of corruption in the bundle's ``train.json`` is applied alone, then all of them as in training. It leaves
``restoration.json``, ``restoration.md`` (a table) and ``restoration.png`` (the first case).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.metrics import SSIMMetric
from monai.transforms import Compose
from torch import Tensor

from medseg.bundle import Bundle
from medseg.files import write_json, write_text
from medseg.pictures import sheet, window_of
from medseg.training import TrainingDataset, image_items
from medseg.training.data import Draw
from medseg.training.pictures import pictures as planes
from medseg.training.pictures import save_picture

KINDS = {
    "RandGaussianSmoothd": "blur",
    "medseg.transforms.RandGraind": "grain",
    "RandGaussianNoised": "noise",
    "RandCoarseShuffled": "shuffled blocks",
    "RandCoarseDropoutd": "missing blocks",
    "medseg.transforms.RandMissingSlicesd": "missing slices",
}
ALL = "all, as in training"


def corruptions(config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kind of corruption → definitions of its transforms; alone it always happens."""
    copied, *kinds, typed = config["train"]["corruption_transforms"]
    found = {}
    for definition in kinds:
        alone = {**copy.deepcopy(definition), "prob": 1.0}
        found[KINDS[definition["_target_"]]] = [copied, alone, typed]
    return {**found, ALL: [copied, *kinds, typed]}


def dataset(config: dict[str, Any], corruption: list[dict[str, Any]], items: list[dict[str, Any]]) -> TrainingDataset:
    """Held-out cases, each always corrupted in the same way."""
    chain = ConfigParser(
        {
            "spacing_mm": config["spacing_mm"],
            "transforms": [*config["train"]["preprocessing_transforms"], *corruption],
        }
    )
    return TrainingDataset(items, Compose(chain.get_parsed_content("transforms")), seed=0, copy_cache=True)


def psnr_db(found: Tensor, wanted: Tensor, intensity_range: float) -> float:
    return float(10.0 * torch.log10(intensity_range**2 / (found - wanted).square().mean()))


def measure(bundle: Bundle, items: list[dict[str, Any]], output: Path) -> dict[str, dict[str, float]]:
    """Means over the cases, per kind of corruption."""
    config = bundle.config("train")
    intensity_range = float(config["intensity_range"])
    ssim = SSIMMetric(3, data_range=intensity_range, win_size=7)
    network = bundle.load_network()
    parser = ConfigParser({"inferer": config["validate"]["inferer"]})
    inferer = parser.get_parsed_content("inferer")
    table, pictures = {}, []
    for kind, definitions in corruptions(config).items():
        cases = dataset(config, definitions, items)
        rows = []
        for number in range(len(items)):
            item = cases[Draw(number, number)]
            bad, good = item["image"][None], item["label"][None]
            with torch.inference_mode():
                restored = inferer(bad, network)
                figures = [float(ssim(found, good)) for found in (bad, restored)]
            rows.append([*figures, *(psnr_db(found, good, intensity_range) for found in (bad, restored))])
            if not number:
                window = window_of(good[0, 0].numpy())
                pictures.append((kind, [planes(volume[0], None, window)[-1] for volume in (good, bad, restored)]))
        names = ("corrupted_ssim", "restored_ssim", "corrupted_psnr_db", "restored_psnr_db")
        table[kind] = dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
    save_picture(sheet(pictures, [], ["original", "corrupted", "restored"]), output / "restoration.png")
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    lines = ["| corruption | SSIM corrupted → restored | PSNR corrupted → restored, dB |", "| --- | --- | --- |"]
    for kind, f in table.items():
        lines.append(
            f"| {kind} | {f['corrupted_ssim']:.3f} → {f['restored_ssim']:.3f} | "
            f"{f['corrupted_psnr_db']:.1f} → {f['restored_psnr_db']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--fold", type=int, default=0)
    chosen = parser.parse_args()
    bundle = Bundle.open(chosen.bundle)
    datalist = bundle.path / "configs" / "datalist.json"
    items = image_items(datalist, chosen.data, chosen.fold, "validation", chosen.cases)
    table = measure(bundle, items, chosen.output)
    write_json(chosen.output / "restoration.json", {"cases": len(items), "fold": chosen.fold, "table": table})
    write_text(chosen.output / "restoration.md", markdown(table))
    print(markdown(table))


if __name__ == "__main__":
    main()
