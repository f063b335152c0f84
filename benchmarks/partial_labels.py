"""What half-finished labels cost: the hippocampus with the posterior part unknown in half of the training cases.

Three arms learn from the same images with the same recipe and seed, and are validated on the same complete cases:

* ``full``: every case has both parts;
* ``unknown``: in every second case nobody drew the posterior part, and the datalist says so (``annotated``);
* ``background``: the same files, and nothing says so: what is not drawn is background.

    python -m benchmarks.partial_labels MSD_HIPPOCAMPUS OUTPUT

Runs that were stopped go on where they were. ``OUTPUT/results.json`` has the mean Dice of each part, held out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from medseg.files import write_json
from medseg.ingest import read_volume, save_nifti
from medseg.planning import Budget, create_bundle
from medseg.tables import read_table
from medseg.training import train_bundle

ARMS = ("full", "unknown", "background")
STRUCTURES = ("anterior", "posterior")
_HELD_OUT = 5
_RECIPE = {
    "epochs": 16,
    "val_interval": 16,
    "warm_up": 240,
    "ramp": 160,
    "judge_steps": 0,
    "train#augmentation_transforms#0#prob_foreground": 0.33,  # what is planned depends on how much is drawn
}


def datalist(data: Path, arm: str, output: Path) -> Path:
    """The datalist of an arm; the label maps without the posterior part are written beside it."""
    items = sorted(json.loads((data / "dataset.json").read_text())["training"], key=lambda item: str(item["image"]))
    order = np.random.default_rng(0).permutation(len(items))
    held_out = set(order[: len(items) // _HELD_OUT].tolist())
    without = set(order[len(items) // _HELD_OUT :][::2].tolist()) if arm != "full" else set()
    listed = [_item(data, item, output, number in without) for number, item in enumerate(items)]
    for number, entry in enumerate(listed):
        entry["fold"] = int(number not in held_out)
        if number in without and arm == "unknown":
            entry["annotated"] = ["anterior"]
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    path = output / f"{arm}.json"
    write_json(path, {"modality": {"0": "MRI"}, "labels": labels, "training": listed})
    return path


def _item(data: Path, item: dict[str, Any], output: Path, without: bool) -> dict[str, Any]:
    image, label = ((data / str(item[key])).absolute() for key in ("image", "label"))
    if without:
        part = output / "anterior" / label.name
        if not part.exists():
            array, grid, _ = read_volume(label)
            save_nifti((array == 1).astype(np.uint8), grid.affine, part)
        label = part.absolute()
    return {"image": str(image), "label": str(label), "patient_id": image.name.split(".")[0]}


def run(data: Path, output: Path, arm: str) -> dict[str, float]:
    """Plan, train and validate one arm; the mean Dice of each structure."""
    folder, done = output / f"hippocampus_mri_{arm}", output / f"run_{arm}"
    if not (folder / "models").is_dir():
        create_bundle(folder.name, datalist(data, arm, output), output, budget=Budget(minutes=8))
    train_bundle(folder, fold=0, output=done, device="cpu", overrides=_RECIPE, resume=True)
    last = list(read_table(done / "metrics.csv").rows)[-1]
    return {name: float(last[f"val_dice_{name}"]) for name in STRUCTURES}


def main() -> None:
    """Run the arms that have no result yet, and print all results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="the Decathlon's Task04_Hippocampus, or a folder like it")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    path = given.output / "results.json"
    results: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for arm in ARMS:
        if arm not in results:
            results[arm] = run(given.data, given.output, arm)
            write_json(path, results)
        print(arm, {name: round(dice, 4) for name, dice in results[arm].items()}, flush=True)


if __name__ == "__main__":
    main()
