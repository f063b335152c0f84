"""What three judges accept on cases that neither they nor the network have learnt from, and how good that is.

    python -m benchmarks.three_judges DATA OUTPUT [--epochs 10]

DATA is the folder of MSD Task04_Hippocampus. A network learns from folds 2, 3 and 4 (a short training: plain, 2 crops,
50 steps an epoch), and so does the judge with which its run ends; if that is not accepted, the flagship's is taken,
which has learnt from all but fold 0. The calibration is fitted on the network's results of fold 1, as at a hospital
with corrected cases of its own. Then all is tried on fold 0: its images as they are, and with noise. Every step is the
package's own, and what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medseg.bundle import Bundle
from medseg.evaluation import evaluate_folders
from medseg.files import write_json
from medseg.inference import Options, run_batch
from medseg.results.accept_table import GOOD_DICE
from medseg.training import train_bundle
from medseg.trust.discriminator_acceptance import discriminator_state
from medseg.workflows.trust_fit import FitRequest, recalibrate

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
TRIED, CORRECTED = 0, 1
"""Folds that the judges are tried on, and that the calibration is fitted on."""
NOISE = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations of the noise; an image's own is 1."""


class Experiment:
    """A copy of the flagship, with both folds held out, and the cases of each."""

    def __init__(self, data: Path, output: Path) -> None:
        self.data, self.output, self.bundle = data.absolute(), output.absolute(), output.absolute() / BUNDLE.name
        self.content = json.loads((BUNDLE / "configs" / "datalist.json").read_text())
        if not self.bundle.is_dir():
            shutil.copytree(BUNDLE, self.bundle, ignore=shutil.ignore_patterns("trust"))
        self.datalist(self.bundle / "configs" / "datalist.json", self.content["training"])
        learnt = [item for item in self.content["training"] if item["fold"] not in (TRIED, CORRECTED)]
        self.datalist(self.output / "learnt.json", learnt)

    def datalist(self, path: Path, items: Sequence[Mapping[str, Any]]) -> None:
        """Write cases as a datalist; those of both folds are in fold 0."""
        folds = [{**item, "fold": 0 if item["fold"] in (TRIED, CORRECTED) else item["fold"]} for item in items]
        kept = {key: value for key, value in self.content.items() if key not in ("split", "test")}
        write_json(path, {**kept, "dataset_dir": str(self.data), "training": folds})

    def train(self, epochs: int) -> dict[str, Any]:
        """Network and judge, into the copy of the bundle; whether the judge is accepted."""
        short = {"epochs": epochs, "batch_size": 2, "adversarial_share": 0, "val_interval": 100, "judge_steps": 1500}
        result = train_bundle(
            self.bundle,
            dataset_dir=self.data,
            fold=0,
            output=self.output / "run",
            resume=True,
            publish="final",
            device="cpu",
            overrides=short,
        )
        return {"accepted": result.discriminator, "judge": result.judge}

    def cases(self, fold: int) -> tuple[Path, Path]:
        """Folder of a fold's images, with noise on those of the one that is tried, and datalist of the references."""
        place, listed = self.output / f"fold{fold}", []
        images, labels = place / "images", place / "labels"
        for number, item in enumerate(one for one in self.content["training"] if one["fold"] == fold):
            name = Path(item["image"]).name.removesuffix(".nii.gz")
            image = nib.load(self.data / item["image"])
            values = np.asarray(image.dataobj, dtype=np.float32)
            for sigma in NOISE if fold == TRIED else (0.0,):
                noise = np.random.default_rng(number).standard_normal(values.shape) * sigma * values.std()
                for folder in (images, labels):
                    folder.mkdir(parents=True, exist_ok=True)
                case = f"{name}-noise{10 * sigma:02.0f}.nii.gz"
                nib.save(nib.Nifti1Image((values + noise).astype(np.float32), image.affine), images / case)
                shutil.copyfile(self.data / item["label"], labels / case)
                names = {"image": f"images/{case}", "label": f"labels/{case}"}
                listed.append({**names, "patient_id": item["patient_id"], "fold": 0})
        write_json(place / "datalist.json", {"labels": self.content["labels"], "training": listed})
        return images, place / "datalist.json"

    def infer(self, images: Path, folder: Path) -> None:
        """Results with all that the bundle's trust says of them; goes on where it was stopped."""
        run_batch(self.bundle, [images], folder, Options(precision="fp32", device="cpu"))

    def table(self) -> dict[str, Any]:
        """Calibrate on one fold, and hold all judges against the references of the other."""
        images, references = self.cases(CORRECTED)
        self.infer(images, self.output / "corrected")
        if not (self.bundle / "trust" / "calibration.json").is_file():
            request = FitRequest(self.bundle, self.output / "corrected", references, (images,), device="cpu")
            # a threshold of its own: one fold has too few patients to show a precision that one is chosen for
            recalibrate(replace(request, accept=GOOD_DICE, training=self.output / "learnt.json", fine_tune=True))
        if discriminator_state(Bundle.open(self.bundle)).state != "accepted":
            for path in (BUNDLE / "trust").glob("discriminator*"):
                shutil.copy(path, self.bundle / "trust")
        images, references = self.cases(TRIED)
        self.infer(images, self.output / "tried")
        found = evaluate_folders(self.output / "tried", references, self.output / "tried", labels=self.bundle).summary
        return dict(found["accepted"])


def row(judge: Mapping[str, Any]) -> str:
    """A line of the table."""
    accepted, good = judge["accepted"], judge["good"][f"{GOOD_DICE:g}"]
    shares = [
        f"{one['count']} of {one['of']} ({100 * one['low']:.0f}–{100 * one['high']:.0f} %)" for one in (accepted, good)
    ]
    spreads = [
        "-" if one["std"] is None else f"{one['mean']:.3g} ± {one['std']:.2g}"
        for measure in (judge["dice"], judge["hd95_mm"])
        for one in (measure["accepted"], measure["others"])
    ]
    return f"| {' | '.join([judge['judge'], *shares, *spreads])} |"


def main() -> None:
    """Train, calibrate, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(options.data, options.output)
    print(json.dumps(experiment.train(options.epochs), indent=1))
    found = experiment.table()
    write_json(options.output / "accepted.json", found)
    print("| judge | accepted | of these good | Dice, accepted | others | HD95 [mm], accepted | others |")
    print("\n".join(row(judge) for judge in found["judges"]))


if __name__ == "__main__":
    main()
