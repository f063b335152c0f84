"""A medseg bundle in MONAI Label's own bundle app: inference, and training from the published weights."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medseg.bundle import Bundle
from medseg.evaluation import evaluate_case
from medseg.inference import Options, run_batch
from tests.sharing.overlay import overlay

FLAGSHIP = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"
TRAINING, HELD_OUT = ("hippocampus_001", "hippocampus_006"), "hippocampus_204"
PACKAGES = (
    "monailabel==0.8.5",
    "monai==1.5.2",  # MONAI 1.6's Spacingd takes MONAI Label's "image_path" for metadata of "image"
    "pydicom==2.4.5",  # pydicom-seg does not import with pydicom 3
    *("pydicom-seg==0.4.1", "dicomweb-client==0.59.3", "torchvision==0.28.0", "scikit-image==0.26.0"),
    *("pydantic-settings==2.16.3", "python-dotenv==1.2.4", "cachetools==8.0.1", "expiring_dict==1.1.2"),
    *("sortedcontainers==2.4.0", "girder-client==5.0.21", "diskcache==5.6.3", "requests-toolbelt==1.0.0"),
    *("pynrrd==1.1.3", "schedule==1.2.2", "shapely==2.2.0", "imageio==2.38.1", "lazy-loader==0.6"),
    *("tifffile==2026.3.3", "timeloop==1.0.2", "watchdog==7.1.0", "tqdm==4.70.1"),
    *("google-auth==2.62.2", "pyasn1==0.6.5", "pyasn1-modules==0.4.2"),
)


def write_site(folder: Path, prefix: Path, data: Path) -> Path:
    """The app with the bundle in it, and three studies, two of them labelled. Returns the bundle."""
    shutil.copytree(prefix / "monailabel" / "sample-apps" / "monaibundle", folder / "app")
    bundle = folder / "app" / "model" / FLAGSHIP.name
    shutil.copytree(FLAGSHIP, bundle, ignore=shutil.ignore_patterns("runs", "eval"))
    train = json.loads((bundle / "configs" / "train.json").read_text())
    train.update(iterations=3, batch_size=2, val_interval=1)
    (bundle / "configs" / "train.json").write_text(json.dumps(train))
    labels = folder / "studies" / "labels" / "final"
    labels.mkdir(parents=True)
    for case in (*TRAINING, HELD_OUT):
        shutil.copyfile(data / "imagesTr" / f"{case}.nii.gz", folder / "studies" / f"{case}.nii.gz")
    for case in TRAINING:
        shutil.copyfile(data / "labelsTr" / f"{case}.nii.gz", labels / f"{case}.nii.gz")
    return bundle


def voxels(path: str | Path) -> Any:
    return np.asarray(nibabel.load(path).dataobj).squeeze().astype(np.uint8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI and torch warn about much when a whole pipeline runs
def test_monai_label_infers_and_trains_with_the_bundle(tmp_path: Path, real_data: Path) -> None:
    python = overlay(tmp_path / "label", *PACKAGES)
    data = real_data / "msd_hippocampus"
    bundle = write_site(tmp_path, tmp_path / "label", data)
    published = bundle / "models" / "model.pt"
    before = published.read_bytes()
    script = Path(__file__).with_name("monai_label_site.py")
    done = subprocess.run(
        [str(python), "-W", "ignore", str(script), str(tmp_path), bundle.name, HELD_OUT, str(tmp_path / "result.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())

    names = Bundle.open(FLAGSHIP).labels
    assert result["model"]["labels"] == {name: value for value, name in names.items()}
    found, reference = voxels(result["file"]), voxels(data / "labelsTr" / f"{HELD_OUT}.nii.gz")
    run_batch(FLAGSHIP, [tmp_path / "studies" / f"{HELD_OUT}.nii.gz"], tmp_path / "own", Options(precision="fp32"))
    assert np.mean(found != voxels(tmp_path / "own" / f"{HELD_OUT}_seg.nii.gz")) < 1e-4
    assert all((row.values["dice"] or 0.0) > 0.7 for row in evaluate_case(found, reference, (1.0, 1.0, 1.0), names))

    run = bundle / "runs" / "fold0"
    with (run / "metrics.csv").open() as handle:
        (epoch,) = csv.DictReader(handle)
    assert float(epoch["val_dice"]) > 0.7  # after three steps: it started from the published weights
    trained = torch.load(run / "checkpoints" / "final.pt", weights_only=True)
    start = torch.load(published, weights_only=True)
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    assert published.read_bytes() == before
