"""Train the hippocampus bundle on one fold and measure it: Dice and distances per case, Dice against minutes.

    python -m benchmarks.train_flagship DATA OUTPUT --fold 0 --teachers 3

No discriminator takes part (the ablation says what one is worth); the judge learns when all is done. With
``--teachers`` that many networks are trained first. With ``--without 0`` the cases of that fold are left out
altogether, so that a recipe is chosen on an inner split. It goes on where it was stopped; nothing is done again.
It leaves ``cases.csv`` (one row per case and structure), ``curve.csv`` (Dice against core-minutes), ``flagship.json``,
and keeps predictions and checkpoints.
"""

from __future__ import annotations

import argparse
import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from medseg.bundle import Bundle
from medseg.evaluation import evaluate_case
from medseg.files import write_json, write_text
from medseg.training import fold_items, train_bundle, train_with_teachers
from medseg.training.configuration import parse_overrides

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
METRICS = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd")


def inner_split(output: Path, without: int | None) -> Path:
    """The bundle's datalist, or one in ``output`` that lacks a fold."""
    path = BUNDLE / "configs" / "datalist.json"
    if without is None:
        return path
    content = json.loads(path.read_text())
    content["training"] = [item for item in content["training"] if item["fold"] != without]
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "datalist.json", content)
    return output / "datalist.json"


def predict(bundle: Bundle, weights: Path, items: list[dict[str, Any]], folder: Path, **overrides: Any) -> None:
    """Segment the held-out cases by the bundle's own ``inference.json``, with overrides."""
    workflow = ConfigWorkflow(
        config_file=str(bundle.path / "configs" / "inference.json"),
        meta_file=str(bundle.path / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle.path),
        weights=str(weights),
        datalist=[{"image": item["image"]} for item in items],
        output_dir=str(folder),
        **overrides,
    )
    workflow.initialize()
    workflow.run()


def measure(bundle: Bundle, items: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """One row per case and structure, from the saved label maps."""
    rows = []
    for item in items:
        name = Path(item["image"]).name.removesuffix(".nii.gz")
        reference = nib.load(item["label"])
        found = nib.load(folder / f"{name}_seg.nii.gz")
        arrays = [np.asarray(image.dataobj).astype(np.uint8) for image in (found, reference)]
        spacing_mm = tuple(float(s) for s in reference.header.get_zooms()[:3])
        for result in evaluate_case(arrays[0], arrays[1], spacing_mm, bundle.labels):
            rows.append({"case_id": name, "structure": result.name, **{m: result.values[m] for m in METRICS}})
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation per structure and metric."""
    summary: dict[str, dict[str, list[float]]] = {}
    for name in dict.fromkeys(row["structure"] for row in rows):
        summary[name] = {}
        for metric in METRICS:
            values = np.array([row[metric] for row in rows if row["structure"] == name and row[metric] is not None])
            summary[name][metric] = [float(values.mean()), float(values.std(ddof=1))]
    return summary


def curve(output: Path) -> list[dict[str, Any]]:
    """Dice against core-minutes, from the run's ``metrics.csv``."""
    with (output / "metrics.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["val_dice"]]
    wanted = [name for name in rows[0] if name.startswith("val_dice_")]
    return [
        {"epoch": row["epoch"], "core_minutes": round(float(row["cpu_seconds"]) / 60, 2)}
        | {"minutes": round(float(row["seconds"]) / 60, 2)}
        | {name.removeprefix("val_dice_"): round(float(row[name]), 4) for name in wanted}
        for row in rows
    ]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV."""
    lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def main() -> None:
    """Parse, train (or go on), predict, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04_Hippocampus")
    parser.add_argument("output", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--teachers", type=int, default=0, help="networks that the measured one learns from")
    parser.add_argument("--without", type=int, help="fold that is neither learnt from nor measured")
    parser.add_argument("--set", action="append", default=[], help="ID=VALUE of train.json, for all of them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundle = Bundle.open(BUNDLE)
    run = partial(train_with_teachers, count=options.teachers, tell=print) if options.teachers else train_bundle
    datalist = inner_split(options.output, options.without)
    run(
        BUNDLE,
        datalist=datalist,
        dataset_dir=options.data,
        fold=options.fold,
        output=options.output,
        resume=True,
        overrides={"adversarial_share": 0.0, **parse_overrides(options.set)},
    )
    items = fold_items(datalist, options.data, options.fold, "validation")
    folder = options.output / "predictions"
    if len(list(folder.glob("*_seg.nii.gz"))) < len(items):
        predict(bundle, options.output / "checkpoints" / "final.pt", items, folder)
    rows = measure(bundle, items, folder)
    points = curve(options.output)
    write_table(options.output / "cases.csv", rows)
    write_table(options.output / "curve.csv", points)
    result = {"fold": options.fold, "cases": len(items), "threads": options.threads, "metrics": summarise(rows)}
    write_json(options.output / "flagship.json", {**result, "curve": points})
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
