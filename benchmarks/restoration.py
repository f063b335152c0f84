"""How well a bundle that restores volumes does so on held-out cases, corruption by corruption; the gate it must pass.

    python -m benchmarks.restoration bundles/volume_restoration_pretraining DATA OUTPUT

Every kind of corruption in the bundle's ``train.json`` is applied alone, then all of them as in training, then none. It
leaves ``restoration.json`` (with the SHA-256 of the weights), ``restoration.md`` (a table) and ``restoration.png`` (the
first case). The exit code is 1 if the result is worse than its input for any kind: SSIM or PSNR, means over the cases.
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
from numpy.typing import NDArray
from torch import Tensor

from medseg.bundle import Bundle
from medseg.files import sha256_file, write_json, write_text
from medseg.pictures import draw, render, sheet, view_along, window_of
from medseg.training import TrainingDataset, image_items
from medseg.training.data import Draw
from medseg.training.pictures import save_picture

KINDS = {
    "RandGaussianSmoothd": "blur",
    "medseg.transforms.RandGraind": "grain",
    "RandGaussianNoised": "noise",
    "RandCoarseShuffled": "shuffled blocks",
    "RandCoarseDropoutd": "missing blocks",
    "medseg.transforms.RandMissingSlicesd": "missing slices",
}
ALL, NONE = "as in training", "nothing"
_PANEL_PX = 220
Table = dict[str, dict[str, float | None]]
"""Kind of corruption → figures; the PSNR of what nothing has happened to is None, and so is nothing measured."""


def corruptions(config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kind of corruption → definitions of its transforms; alone it always happens."""
    copied, *kinds, typed = config["train"]["corruption_transforms"]
    found = {}
    for definition in kinds:
        alone = {**copy.deepcopy(definition), "prob": 1.0}
        found[KINDS[definition["_target_"]]] = [copied, alone, typed]
    return {**found, ALL: [copied, *kinds, typed], NONE: [copied, typed]}


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
    """Peak signal-to-noise ratio; infinite if nothing differs."""
    return float(10.0 * torch.log10(intensity_range**2 / (found - wanted).square().mean()))


def measure(bundle: Bundle, items: list[dict[str, Any]]) -> tuple[Table, NDArray[np.uint8]]:
    """Figures per kind of corruption (means over the cases, share of them that got better), and a picture."""
    config = bundle.config("train")
    intensity_range = float(config["intensity_range"])
    ssim = SSIMMetric(3, data_range=intensity_range, win_size=7)
    network = bundle.load_network()
    inferer = ConfigParser({"inferer": config["validate"]["inferer"]}).get_parsed_content("inferer")
    table: Table = {}
    pictures = []
    for kind, definitions in corruptions(config).items():
        cases = dataset(config, definitions, items)
        rows = []
        for number in range(len(items)):
            item = cases[Draw(number, number)]
            bad, good = item["image"][None], item["label"][None]
            with torch.inference_mode():
                restored = inferer(bad, network)
            pairs = [(float(ssim(v, good)), psnr_db(v, good, intensity_range)) for v in (bad, restored)]
            rows.append(pairs)
            if not number and kind != NONE:
                title = f"{kind}: PSNR {pairs[0][1]:.1f} → {pairs[1][1]:.1f} dB"
                pictures.append((title, planes(bad, restored, good)))
        table[kind] = summary(np.array(rows))
    return table, sheet(pictures, [], ["", "", ""])


def summary(figures: NDArray[np.float64]) -> dict[str, float | None]:
    """Means of (case, corrupted or restored, SSIM or PSNR), and the share of cases of which the PSNR rose.

    Cases that nothing has happened to have an infinite PSNR: unless all are such, it is the mean over the others.
    """
    touched = np.isfinite(figures[:, 0, 1])
    counted = figures[touched] if touched.any() else figures
    before, after = (float(value) for value in counted[:, :, 1].mean(axis=0))
    return {
        "corrupted_ssim": float(figures[:, 0, 0].mean()),
        "restored_ssim": float(figures[:, 1, 0].mean()),
        "corrupted_psnr_db": before if np.isfinite(before) else None,
        "restored_psnr_db": after,
        "better": float((counted[:, 1, 1] > counted[:, 0, 1]).mean()),
    }


def planes(bad: Tensor, restored: Tensor, good: Tensor) -> list[NDArray[np.uint8]]:
    """Input, result and truth in the sagittal plane that is corrupted most, in the grey range of the truth."""
    at = int((bad - good).abs().sum((0, 1, 3, 4)).argmax())
    window = window_of(good.numpy())
    view = view_along(None, 0)
    return [
        render(draw(view, volume[0, 0, at].numpy(), [], number=at + 1, longest_px=_PANEL_PX, window=window), {}, name)
        for volume, name in ((bad, "input"), (restored, "restored"), (good, "truth"))
    ]


def worse(table: Table) -> list[str]:
    """Kinds of corruption whose result is worse than the input, by SSIM or PSNR."""
    return [
        kind
        for kind, figures in table.items()
        for metric in ("ssim", "psnr_db")
        if kind != NONE and float(figures[f"restored_{metric}"] or 0.0) < float(figures[f"corrupted_{metric}"] or 0.0)
    ]


def markdown(table: Table) -> str:
    """The table of a bundle's page."""
    lines = ["| corruption | SSIM input → restored | PSNR input → restored, dB | cases that got better |"]
    lines.append("| --- | --- | --- | --- |")
    for kind, f in table.items():
        psnr = ["∞" if f[name] is None else f"{f[name]:.1f}" for name in ("corrupted_psnr_db", "restored_psnr_db")]
        better = "–" if kind == NONE else f"{f['better']:.0%}"
        lines.append(
            f"| {kind} | {f['corrupted_ssim']:.3f} → {f['restored_ssim']:.3f} | {' → '.join(psnr)} | {better} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse, measure, write, print; 1 if the gate is not passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cases", type=int, default=20, help="the first so many of the fold")
    parser.add_argument("--fold", type=int, default=0)
    chosen = parser.parse_args()
    bundle = Bundle.open(chosen.bundle)
    datalist = bundle.path / "configs" / "datalist.json"
    items = image_items(datalist, chosen.data, chosen.fold, "validation", chosen.cases)
    table, picture = measure(bundle, items)
    save_picture(picture, chosen.output / "restoration.png")
    weights = sha256_file(bundle.path / "models" / "model.pt")
    facts = {"cases": len(items), "fold": chosen.fold, "weights_sha256": weights, "table": table}
    write_json(chosen.output / "restoration.json", facts)
    write_text(chosen.output / "restoration.md", markdown(table))
    print(markdown(table))
    if failed := worse(table):
        print(f"worse than the input: {', '.join(dict.fromkeys(failed))}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
