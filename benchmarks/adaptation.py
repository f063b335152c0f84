"""A calibration of trust at a second hospital: that it does not hold there, and what makes it hold again.

Hospital A is like the patients that the shipped bundle was trained on. Hospital B scans the same kind of patient with
less dose, a softer kernel and a shifted scale. All patients are synthetic. Run it as
``python -m benchmarks.adaptation FOLDER``; prints a Markdown table and writes ``adaptation.json``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.bundle import Bundle
from medseg.bundle.find import shipped_bundle
from medseg.evaluation import evaluate_case
from medseg.files import write_json
from medseg.inference import Options, RunReport, run_batch
from medseg.ingest import read_volume, save_nifti
from medseg.phantom import make_patient
from medseg.training import train_bundle
from medseg.workflows.trust_fit import FitRequest, Recalibration, recalibrate

BUNDLE = "phantom_ct_segmentation"
GROUPS = {"a-training": 5000, "a-calibration": 5200, "a-test": 5400, "b-calibration": 5600, "b-test": 5800}
FIRST_B_TRAINING = 6000
STEPS = {"epochs": 3, "iterations": 40, "val_interval": 3, "learning_rate": 0.002, "warm_up": 1000}


@dataclass(frozen=True)
class Scale:
    """Number of patients to calibrate on, to test on and to train on at each hospital."""

    calibration: int = 20
    test: int = 20
    training: int = 12


def scanner_b(image: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """What hospital B's scanner makes of a patient: softer, shifted by -25 HU, noise of 45 HU."""
    soft = ndimage.gaussian_filter(np.asarray(image, dtype=np.float32), 0.7)
    noise = np.random.default_rng(seed).normal(0.0, 45.0, soft.shape)
    return np.asarray(soft * 0.9 - 25.0 + noise, dtype=np.float32)


def write_group(folder: Path, name: str, first_seed: int, count: int) -> Path:
    """Images and references of one group of patients, and the datalist that pairs them."""
    items = []
    for seed in range(first_seed, first_seed + count):
        patient = make_patient(seed, "ct", structures=4)
        image = scanner_b(patient.image, seed) if name.startswith("b") else patient.image
        for kind, array in (("image", image), ("label", patient.label)):
            save_nifti(array, patient.affine, folder / name / f"{kind}s" / f"{name}-{seed}.nii.gz")
        case = {kind: f"{name}/{kind}s/{name}-{seed}.nii.gz" for kind in ("image", "label")}
        items.append({**case, "patient_id": str(seed), "fold": int(seed % 4 != 0)})
    labels = {"0": "background", **{str(k): v for k, v in Bundle.open(shipped_bundle(BUNDLE)).labels.items()}}
    path = folder / f"{name}.json"
    write_json(path, {"name": name, "labels": labels, "training": items})
    return path


def figures(folder: Path, references: Path) -> dict[str, Any]:
    """Dice, and what trust foretold of it, over the cases of an infer folder."""
    report = RunReport.read(folder).content
    dice, errors, reached, verdicts = [], [], [], {"accept": 0, "review": 0, "reject": 0}
    flagged, wrongly_accepted = 0, 0
    for case in report["cases"]:
        measured = _dice(folder / case["outputs"][0], references / f"{case['case_id']}.nii.gz")
        dice += list(measured.values())
        trust = case["trust"]
        if trust is None:
            continue
        verdicts[trust["verdict"]] += 1
        flagged += bool(trust["flags"])
        wrongly_accepted += trust["verdict"] == "accept" and min(measured.values()) < 0.8
        for structure in trust["structures"]:
            found = measured[structure["label"]]
            errors.append(abs(structure["predicted_dice"] - found))
            reached.append(found >= structure["lower_bound"])
    judged = bool(reached)
    return {
        "trust": report["trust"]["state"],
        "dice": float(np.mean(dice)),
        "mae": float(np.mean(errors)) if judged else None,
        "coverage": float(np.mean(reached)) if judged else None,
        "structures": len(reached),
        "verdicts": verdicts if judged else None,
        "flagged": flagged if judged else None,
        "accepted_below_0.8": wrongly_accepted if judged else None,
    }


def _dice(prediction: Path, reference: Path) -> dict[int, float]:
    found, geometry, _ = read_volume(prediction)
    wanted, _, _ = read_volume(reference)
    labels = Bundle.open(shipped_bundle(BUNDLE)).labels
    rows = evaluate_case(found, wanted, geometry.spacing_mm, labels)
    return {row.label: float(row.dice or 0.0) for row in rows}


@dataclass(frozen=True)
class Walk:
    """The hospitals' folders and the bundle that moves from A to B."""

    folder: Path
    bundle: Path

    def infer(self, group: str, where: str) -> RunReport:
        """Segment a group of patients into a folder of its own."""
        options = Options(windows="bundle", precision="fp32")
        return run_batch(self.bundle, [self.folder / group / "images"], self.folder / where, options)

    def measure(self, group: str, where: str) -> dict[str, Any]:
        """Segment a group and compare with its references."""
        self.infer(group, where)
        return figures(self.folder / where, self.folder / group / "labels")

    def fit(self, group: str, where: str, training: str | None = None) -> Recalibration:
        """Correct a group's results (here: take the references), and calibrate trust on them."""
        self.infer(group, where)
        corrected = self.folder / group / "labels"
        datalist = self.folder / f"{training}.json" if training else None
        # so few patients can show no precision that a threshold could be chosen for
        return recalibrate(FitRequest(self.bundle, self.folder / where, corrected, training=datalist, accept=0.8))


def prepare(folder: Path, scale: Scale) -> Walk:
    """Make the patients, and a copy of the shipped bundle without trust."""
    sizes = {"training": scale.training, "calibration": scale.calibration, "test": scale.test}
    for name, seed in {**GROUPS, "b-training": FIRST_B_TRAINING}.items():
        write_group(folder, name, seed, sizes[name.partition("-")[2]])
    bundle = folder / "bundle" / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(shipped_bundle(BUNDLE), bundle, ignore=shutil.ignore_patterns("trust", "runs"))
    return Walk(folder, bundle)


def adapt(walk: Walk, steps: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Walk from hospital A to hospital B; figures of every station."""
    found: dict[str, dict[str, Any]] = {}
    walk.fit("a-calibration", "out-a-calibration", "a-training")
    found["A, calibrated at A"] = walk.measure("a-test", "out-a")
    found["B, calibrated at A"] = walk.measure("b-test", "out-b")
    before = walk.fit("b-calibration", "out-b-calibration").before
    found["B, calibrated at B"] = walk.measure("b-test", "out-b-calibrated")
    assert before is not None
    found["B, calibrated at B"]["told_before"] = before.coverage
    train(walk, steps or STEPS)
    found["B, trained at B"] = walk.measure("b-test", "out-b-trained")
    walk.fit("b-calibration", "out-b-calibration-trained", "b-training")
    found["B, trained and calibrated at B"] = walk.measure("b-test", "out-b-final")
    return found


def train(walk: Walk, steps: Mapping[str, Any]) -> None:
    """Train the bundle further on B's corrected cases, from its published weights."""
    datalist = walk.folder / "b-training.json"
    train_bundle(
        walk.bundle,
        datalist=datalist,
        dataset_dir=walk.folder,
        output=walk.folder / "training",
        overrides=steps,
        init=walk.bundle,
        publish="final",
    )


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| hospital | Dice | error of predicted Dice | reach their lower bound | accept / review / reject | flagged |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found.items():
        if row["coverage"] is None:
            lines.append(f"| {name} | {row['dice']:.3f} | – | – | no verdicts ({row['trust']}) | – |")
            continue
        counts = " / ".join(str(row["verdicts"][verdict]) for verdict in ("accept", "review", "reject"))
        reached = f"{row['coverage']:.0%} of {row['structures']}"
        cells = [name, f"{row['dice']:.3f}", f"{row['mae']:.3f}", reached, counts, str(row["flagged"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", type=int, default=Scale.calibration)
    parser.add_argument("--test", type=int, default=Scale.test)
    parser.add_argument("--training", type=int, default=Scale.training)
    arguments = parser.parse_args()
    walk = prepare(arguments.folder, Scale(arguments.calibration, arguments.test, arguments.training))
    found = adapt(walk)
    write_json(arguments.folder / "adaptation.json", found)
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
