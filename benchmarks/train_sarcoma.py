"""Train the sarcoma bundle on one fold and measure it beside simple rules; or sum up the folds that are done.

    python -m benchmarks.train_sarcoma DATA OUTPUT --fold 0
    python -m benchmarks.train_sarcoma DATA OUTPUT --summary
    python -m benchmarks.train_sarcoma DATA OUTPUT --rules

DATA is the folder that holds ``nifti/STS_001`` and so on. Each fold goes on where it was stopped, into OUTPUT/foldK:
``cases.csv`` (one row per case and method), ``curve.csv`` (Dice against core-minutes), predictions and checkpoints.
The summary over all folds is ``summary.json`` and, as a table, ``figures.md``. ``--publish K`` copies the weights of
fold K into the bundle; ``--dicom K`` segments the patient whose DICOM series are in DATA/dicom with them; ``--rules``
measures the simple rules alone and trains nothing.

The rules that the network is compared with:

* ``PET 41 %``: uptake of at least 41 % of the largest in the PET's field of view, the part that holds that voxel;
* ``PET 41 %, seeded``: the same with the largest uptake inside the reference (a reader who clicks on the tumour);
* ``PET SUV 2.5``: uptake of at least 2.5, the largest connected part;
* ``centre``: an ellipsoid in the middle of the MR's field of view with half its extent, which sees no image at all (the
  images were cropped round the tumour, and this is what the crop alone tells).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.train_flagship import curve, write_table
from medseg.bundle import Bundle
from medseg.evaluation import StructureResult, compare, evaluate_case
from medseg.files import write_json, write_text
from medseg.geometry import Geometry
from medseg.inference import Options, run_batch
from medseg.ingest import read_volume
from medseg.training import fold_items, train_bundle

BUNDLE = Path(__file__).parents[1] / "bundles" / "sarcoma_mrpet_segmentation"
KEYS = ("image", "channel_1")
METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")
FOLDS = 3
Mask = NDArray[np.bool_]


def predict(bundle: Bundle, weights: Path, items: list[dict[str, Any]], data: Path, folder: Path) -> None:
    """Segment the held-out cases by the bundle's own ``inference.json``, with MONAI alone."""
    workflow = ConfigWorkflow(
        config_file=str(bundle.path / "configs" / "inference.json"),
        meta_file=str(bundle.path / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle.path),
        dataset_dir=str(data),
        weights=str(weights),
        datalist=[{key: item[key] for key in KEYS} for item in items],
        output_dir=str(folder),
    )
    workflow.initialize()
    workflow.run()


def simple_rules(item: dict[str, Any], reference: Mask, grid: Geometry) -> dict[str, Mask]:
    """What simple rules give on the grid of the MR."""
    pet, pet_grid, _ = read_volume(item["channel_1"])
    to_pet = np.linalg.solve(pet_grid.affine, grid.affine)
    uptake = ndimage.affine_transform(pet.astype(np.float32), to_pet[:3, :3], to_pet[:3, 3], grid.shape, order=1)
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / (n / 4) for n in grid.shape], indexing="ij")
    return {
        "PET 41 %": _part_with(uptake >= 0.41 * uptake.max(), int(uptake.argmax())),
        "PET 41 %, seeded": _seeded(uptake, reference),
        "PET SUV 2.5": _largest(uptake >= 2.5),
        "centre": np.asarray(sum(axis**2 for axis in axes) <= 1.0, dtype=bool),
    }


def _seeded(uptake: NDArray[np.float32], reference: Mask) -> Mask:
    seed = int(np.where(reference, uptake, -np.inf).argmax())
    return _part_with(uptake >= 0.41 * uptake.flat[seed], seed)


def _part_with(mask: Mask, voxel: int) -> Mask:
    parts, _ = ndimage.label(mask)
    return np.asarray(parts == parts.flat[voxel], dtype=bool)


def _largest(mask: Mask) -> Mask:
    parts, count = ndimage.label(mask)
    if not count:
        return mask
    return np.asarray(parts == np.bincount(parts.ravel())[1:].argmax() + 1, dtype=bool)


def measure(items: list[dict[str, Any]], data: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """One row per case and method; without a folder of predictions, the simple rules alone."""
    rows = []
    for item in items:
        place = Path(item["label"]).relative_to(data).parent
        label, grid, _ = read_volume(item["label"])
        reference = label > 0
        methods = {} if folder is None else {"network": _found(folder / place / "MR_T1_image_seg.nii.gz", grid)}
        for method, mask in {**methods, **simple_rules(item, reference, grid)}.items():
            arrays = mask.astype(np.uint8), reference.astype(np.uint8)
            (result,) = evaluate_case(*arrays, grid.spacing_mm, {1: "sarcoma"})
            volumes = {"reference_ml": _ml(reference, grid), "ml": _ml(mask, grid)}
            values = {metric: result.values[metric] for metric in METRICS}
            rows.append({"case_id": place.name, "method": method, **volumes, **values})
    return rows


def _found(path: Path, grid: Geometry) -> Mask:
    values, found, _ = read_volume(path)
    if not found.matches(grid):
        raise ValueError(f"{path} lies on {found.describe()}, its reference on {grid.describe()}")
    return np.asarray(values > 0, dtype=bool)


def _ml(mask: Mask, grid: Geometry) -> float:
    return round(float(mask.sum()) * grid.voxel_volume_mm3 / 1000, 2)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and median of Dice per method; distances where something was found; misses."""
    summary: dict[str, Any] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        summary[method] = {"cases": len(own), "missed": sum(not row["dice"] for row in own)}
        for metric in METRICS:
            values = np.array([row[metric] for row in own if row[metric] is not None], dtype=float)
            values = values[np.isfinite(values)]
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            summary[method][metric] = [round(float(v), 4) for v in (values.mean(), spread, np.median(values))]
    return summary


def against_rules(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The network against every rule on the same cases: how often it is better, and Wilcoxon's test."""
    sides = {
        method: [
            StructureResult(1, "sarcoma", {"dice": row["dice"]}, case_id=row["case_id"])
            for row in rows
            if row["method"] == method
        ]
        for method in dict.fromkeys(row["method"] for row in rows)
    }
    network, tests = sides.pop("network"), []
    patients = {row.case_id: row.case_id for row in network}
    for method, others in sides.items():
        (test,) = compare(network, others, patients, ("dice",))
        known = {row.case_id: row.values["dice"] or 0.0 for row in others}
        better = sum((row.values["dice"] or 0.0) > known[row.case_id] for row in network)
        tests.append({"rule": method, "better_in": better, "difference": test["difference"], "p": test["p"]})
    return tests


def table(summary: dict[str, Any]) -> str:
    """Mean ± standard deviation per method, as Markdown."""
    lines = ["| method | Dice | median | HD95, mm | ASSD, mm | missed |", "| --- | --- | --- | --- | --- | --- |"]
    for method, values in summary.items():
        dice, hd95, assd = (values[metric] for metric in ("dice", "hd95_mm", "assd_mm"))
        cells = [method, f"{dice[0]:.3f} ± {dice[1]:.3f}", f"{dice[2]:.3f}"]
        cells += [f"{hd95[0]:.1f} ± {hd95[1]:.1f}", f"{assd[0]:.1f} ± {assd[1]:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {values['missed']} of {values['cases']} |")
    return "\n".join(lines) + "\n"


def run_fold(data: Path, output: Path, fold: int) -> dict[str, Any]:
    """Train (or go on), predict, measure."""
    bundle = Bundle.open(BUNDLE)
    train_bundle(BUNDLE, dataset_dir=data, fold=fold, output=output, resume=True, device="cpu")
    items = fold_items(BUNDLE / "configs" / "datalist.json", data, fold, "validation", keys=KEYS)
    predict(bundle, output / "checkpoints" / "final.pt", items, data, output / "predictions")
    rows = measure(items, data, output / "predictions")
    write_table(output / "cases.csv", rows)
    write_table(output / "curve.csv", curve(output))
    write_json(output / "cases.json", rows)
    return {"fold": fold, **summarise(rows)}


def rules_alone(data: Path) -> dict[str, Any]:
    """The simple rules on all cases; nothing is trained."""
    items = [
        item
        for fold in range(FOLDS)
        for item in fold_items(BUNDLE / "configs" / "datalist.json", data, fold, "validation", keys=KEYS)
    ]
    return summarise(measure(items, data))


def dicom_patient(data: Path, output: Path, fold: int) -> dict[str, Any]:
    """Segment the one patient whose DICOM series are there with the weights of a fold, MR and PET chosen by rules."""
    bundle = output / "bundle" / BUNDLE.name
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(BUNDLE, bundle)
    (bundle / "models").mkdir(exist_ok=True)
    shutil.copyfile(output / f"fold{fold}" / "checkpoints" / "final.pt", bundle / "models" / "model.pt")
    rules = output / "rules.json"
    write_json(rules, {"rules": [{"channel": "mr", "modality": "MR"}, {"channel": "pet", "modality": "PT"}]})
    options = Options(write=("nifti", "seg"), select=str(rules), precision="fp32")
    study = data / "dicom" / "STS_002"
    (case,) = run_batch(bundle, [study], output / "dicom", options).content["cases"]
    reference, grid, _ = read_volume(data / "nifti" / study.name / "MR_T1_mask.nii.gz")
    found = _found(output / "dicom" / f"{case['case_id']}_seg.nii.gz", grid)
    arrays = found.astype(np.uint8), (reference > 0).astype(np.uint8)
    (result,) = evaluate_case(*arrays, grid.spacing_mm, {1: "sarcoma"})
    items = fold_items(bundle / "configs" / "datalist.json", data, fold, "validation", keys=KEYS)
    held_out = any(study.name in item["label"] for item in items)
    return {"held_out": held_out, "note": case["message"], **{metric: result.values[metric] for metric in METRICS}}


def sum_up(output: Path) -> dict[str, Any]:
    """Every held-out case of the folds that are done, once."""
    done = [fold for fold in range(FOLDS) if (output / f"fold{fold}" / "cases.json").is_file()]
    rows = [row for fold in done for row in json.loads((output / f"fold{fold}" / "cases.json").read_text())]
    summary = summarise(rows)
    result = {"folds": done, **summary, "against rules": against_rules(rows)}
    write_json(output / "summary.json", result)
    write_table(output / "cases.csv", rows)
    write_text(output / "figures.md", table(summary))
    return result


def main() -> None:
    """Do one fold, or sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--rules", action="store_true")
    parser.add_argument("--publish", type=int, metavar="K")
    parser.add_argument("--dicom", type=int, metavar="K")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = options.data.absolute()
    if options.fold is not None:
        print(json.dumps(run_fold(data, options.output / f"fold{options.fold}", options.fold), indent=2))
    if options.publish is not None:
        folder = options.output / f"fold{options.publish}"
        train_bundle(
            BUNDLE, dataset_dir=data, fold=options.publish, output=folder, resume=True, publish="final", device="cpu"
        )
    if options.dicom is not None:
        print(json.dumps(dicom_patient(data, options.output, options.dicom), indent=2))
    if options.rules:
        print(table(rules_alone(data)))
    if options.summary:
        print(json.dumps(sum_up(options.output), indent=2))


if __name__ == "__main__":
    main()
