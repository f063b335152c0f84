"""What the tests of the bundles that make images share: tiny volumes, and workflows as users start them."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

from tests.training.conftest import balls

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL_UNET: dict[str, Any] = {
    "network_def#features": [2, 2, 4, 4, 4, 2],
    "validate#inferer#roi_size": [16, 16, 16],
}
"""Ids of the bundles whose network is a U-Net."""


def write_volumes(folder: Path, side: int = 16) -> Path:
    """Four volumes without labels and a datalist of two folds; returns the datalist."""
    items = []
    for number, case in enumerate(balls(4)):
        volume = np.kron(case["image"][0].numpy(), np.ones((side // 16,) * 3, dtype=np.float32))
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"image{number}.nii.gz")
        items.append({"image": f"image{number}.nii.gz", "fold": number % 2})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": items}))
    return path


def small_run(folder: Path, network: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training of seconds on the volumes that this writes; ``network``: what makes the network small."""
    short = {"epochs": 2, "iterations": 2, "batch_size": 2, "patch_size": [16, 16, 16], "val_interval": 1}
    return {**short, **network, "datalist": str(write_volumes(folder)), "dataset_dir": str(folder)}


def workflow(bundle: Path, kind: str, *files: str, **overrides: Any) -> ConfigWorkflow:
    """A workflow of a bundle's configurations, initialised."""
    found = ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in files],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        device="cpu",
        **overrides,
    )
    found.initialize()
    return found


def written(bundle: Path, name: str) -> dict[str, Any]:
    """A configuration of the bundle as plain data."""
    content: dict[str, Any] = json.loads((bundle / "configs" / name).read_text())
    return content
