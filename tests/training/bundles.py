"""A small bundle of the flagship's form, with four small volumes to train on."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.training.conftest import balls

FLAGSHIP = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"
SMALL = {
    "epochs": 2,
    "iterations": 2,
    "batch_size": 2,
    "patch_size": [16, 16, 16],
    "val_interval": 1,
    "warm_up": 1,
    "ramp": 1,
    "network_def#features": [2, 2, 4, 4, 4, 2],
    "discriminator_def#channels": 4,
    "validate#inferer#roi_size": [16, 16, 16],
}


def write_data(folder: Path, unlabelled: int = 0) -> Path:
    """Four volumes and a datalist of two folds, and volumes without labels; returns the datalist."""
    items = []
    for number, case in enumerate(balls(4)):
        names = {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"}
        label = case["label"][0].numpy().astype(np.uint8)
        label[8:][label[8:] > 0] = 2  # two structures, as in the hippocampus
        volumes = {"image": case["image"][0].numpy(), "label": label}
        for key, name in names.items():
            nib.save(nib.Nifti1Image(volumes[key], np.eye(4)), folder / name)
        items.append({**names, "fold": number % 2, "patient_id": f"p{number}"})
    others = [f"unlabelled{number}.nii.gz" for number in range(unlabelled)]
    for name, case in zip(others, balls(unlabelled, seed=7), strict=True):
        nib.save(nib.Nifti1Image(case["image"][0].numpy(), np.eye(4)), folder / name)
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": items} | ({"unlabelled": others} if others else {})))
    return path


def copy_bundle(folder: Path) -> Path:
    """The flagship without its weights, which tests must not change, with the network of ``SMALL`` for inference."""
    target = folder / FLAGSHIP.name
    shutil.copytree(FLAGSHIP, target, ignore=shutil.ignore_patterns("models", "trust", "runs"))
    inference = target / "configs" / "inference.json"
    config = json.loads(inference.read_text())
    config["network_def"]["features"] = SMALL["network_def#features"]
    inference.write_text(json.dumps(config))
    metadata = target / "configs" / "metadata.json"
    facts = json.loads(metadata.read_text())
    del facts["training_range"]  # the volumes of the tests are smaller
    metadata.write_text(json.dumps(facts))
    return target
