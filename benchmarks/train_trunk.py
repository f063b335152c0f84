"""Plan, train and measure a bundle for fourteen structures of synthetic trunks.

    python -m benchmarks.train_trunk OUTPUT --minutes 5

Writes patients into OUTPUT/data, plans OUTPUT/trunk_ct_segmentation for them, trains it on three quarters of the
patients, segments the others by the bundle's own ``inference.json``, and writes ``figures.md``: Dice of each structure
beside that of its position alone (each voxel gets the label that most of the training patients have there).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from medseg.evaluation import evaluate_folders
from medseg.files import write_json, write_text
from medseg.inference import run_batch
from medseg.ingest import read_volume, save_nifti
from medseg.phantom import write_dataset
from medseg.phantom.anatomy import label_names
from medseg.planning import Budget, create_bundle
from medseg.training import train_bundle

NAME = "trunk_ct_segmentation"
STRUCTURES = label_names(14)
SHAPE, SPACING_MM = (40, 30, 48), 8.0
FOLDS = 4
Dice = dict[str, list[float]]


def write_patients(
    folder: Path, count: int, shape: tuple[int, int, int] = SHAPE, spacing_mm: float = SPACING_MM
) -> Path:
    """Trunks from the lungs to the kidneys, all fourteen structures labelled; returns the datalist."""
    patients = write_dataset(
        folder, count, form="nifti", shape=shape, spacing_mm=(spacing_mm,) * 3, structures=14, lesion=True, noise=0.5
    )
    items = [
        {
            "image": str(patient.image.relative_to(folder)),
            "label": str(patient.label.relative_to(folder)),
            "patient_id": patient.patient_id,
            "fold": number % FOLDS,
        }
        for number, patient in enumerate(patients)
    ]
    labels = {"0": "background", **{str(value): name for value, name in STRUCTURES.items()}}
    write_json(folder / "datalist.json", {"modality": {"0": "CT"}, "labels": labels, "training": items})
    return folder / "datalist.json"


def split(datalist: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Items of the other folds, and those of fold 0, which is held out."""
    items = json.loads(datalist.read_text())["training"]
    return [item for item in items if item["fold"]], [item for item in items if not item["fold"]]


def train(bundle: Path, data: Path, output: Path, epochs: int | None) -> tuple[int, float]:
    """Train fold 0 (or go on) and put the last weights into the bundle; iterations and CPU seconds of this part."""
    started = time.process_time()
    short = {} if epochs is None else {"epochs": epochs}
    result = train_bundle(
        bundle, dataset_dir=data, fold=0, output=output, resume=True, publish="final", device="cpu", overrides=short
    )
    return result.iterations, time.process_time() - started


def predict(bundle: Path, datalist: Path, output: Path) -> Path:
    """Segment the held-out patients."""
    run_batch(bundle, [datalist.parent / item["image"] for item in split(datalist)[1]], output)
    return output


def by_position(datalist: Path, output: Path) -> Path:
    """What the training patients alone tell about the held-out ones, which lie on the same grid."""
    training, held_out = split(datalist)
    labels = [read_volume(datalist.parent / item["label"])[0] for item in training]
    votes = np.stack([np.sum([label == value for label in labels], axis=0) for value in range(len(STRUCTURES) + 1)])
    for item in held_out:
        grid = read_volume(datalist.parent / item["label"])[1]
        save_nifti(votes.argmax(axis=0).astype(np.uint8), grid.affine, output / Path(item["image"]).name)
    return output


def dice(predictions: Path, datalist: Path, output: Path) -> Dice:
    """Structure → Dice of each held-out patient; 0 where it was not found."""
    found = evaluate_folders(predictions, datalist.parent / "references", output, labels=STRUCTURES)
    held_out = {Path(item["image"]).name.removesuffix(".nii.gz") for item in split(datalist)[1]}
    rows = [row for row in found.results if row.case_id in held_out]
    return {name: [row.values["dice"] or 0.0 for row in rows if row.name == name] for name in STRUCTURES.values()}


def table(network: Dice, position: Dice, millilitres: dict[str, float]) -> str:
    """Mean, smallest and largest Dice per structure, as Markdown."""
    lines = ["| structure | median volume, ml | Dice | range | by position alone |", "| --- | --- | --- | --- | --- |"]
    for name, values in network.items():
        cells = f"{np.mean(values):.3f} | {min(values):.3f} to {max(values):.3f} | {np.mean(position[name]):.3f}"
        lines.append(f"| {name.replace('_', ' ')} | {millilitres[name]:.0f} | {cells} |")
    means = [np.mean([np.mean(values) for values in one.values()]) for one in (network, position)]
    lines.append(f"| mean of the structures | | {means[0]:.3f} | | {means[1]:.3f} |")
    return "\n".join(lines) + "\n"


def median_ml(datalist: Path) -> dict[str, float]:
    """Median volume of each structure over all patients."""
    items = [item for part in split(datalist) for item in part]
    labels = [read_volume(datalist.parent / item["label"])[0] for item in items]
    voxel_ml = SPACING_MM**3 / 1000
    return {
        name: float(np.median([(label == v).sum() for label in labels])) * voxel_ml for v, name in STRUCTURES.items()
    }


def main() -> None:
    """Write patients, plan, train, predict, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=5.0, help="budget of the plan, on two cores")
    parser.add_argument("--epochs", type=int, help="end earlier than the plan says")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    output = options.output.absolute()
    datalist = write_patients(output / "data", options.patients)
    if not (output / NAME).exists():
        create_bundle(NAME, datalist, output, budget=Budget(minutes=options.minutes))
    iterations, seconds = train(output / NAME, datalist.parent, output / "run", options.epochs)
    network = dice(predict(output / NAME, datalist, output / "predictions"), datalist, output / "evaluation")
    position = dice(by_position(datalist, output / "position"), datalist, output / "position_evaluation")
    write_text(output / "figures.md", table(network, position, median_ml(datalist)))
    print((output / "figures.md").read_text())
    print(f"{iterations} iterations, the last part of them in {seconds / 60:.1f} CPU minutes")


if __name__ == "__main__":
    main()
