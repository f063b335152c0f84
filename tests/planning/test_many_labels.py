"""A bundle for fourteen structures is planned, and learns them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.train_trunk import NAME, STRUCTURES, write_patients
from medseg.bundle import Bundle
from medseg.planning import Budget, create_bundle
from medseg.training import train_bundle


def test_fourteen_labels_are_planned(tmp_path: Path) -> None:
    folder, plan = create_bundle(NAME, write_patients(tmp_path / "data", 2, (30, 24, 36), 11.0), tmp_path)
    bundle = Bundle.open(folder)
    assert bundle.labels == STRUCTURES
    assert bundle.output_channels == plan.network["out_channels"] == 15
    assert bundle.config("train")["discriminator_def"]["label_channels"] == 15
    assert plan.normalisation[0]["_target_"] == "ScaleIntensityRanged"
    text = (folder / "docs" / "plan.md").read_text()
    assert all(f"| {name} |" in text for name in STRUCTURES.values())


@pytest.mark.slow
def test_fourteen_labels_are_learned(tmp_path: Path) -> None:
    """The planned bundle with smaller patches and 600 iterations without discriminator: 2.6 CPU minutes."""
    datalist = write_patients(tmp_path / "data", 8)
    folder, _ = create_bundle(NAME, datalist, tmp_path, budget=Budget(minutes=5))
    short = {"epochs": 12, "val_interval": 12, "warm_up": 1000, "patch_size": [32, 32, 32], "learning_rate": 0.005}
    train_bundle(folder, dataset_dir=datalist.parent, fold=0, output=tmp_path / "run", device="cpu", overrides=short)
    with (tmp_path / "run" / "metrics.csv").open() as handle:
        last = list(csv.DictReader(handle))[-1]
    dice = [float(last[f"val_dice_{name}"]) for name in STRUCTURES.values()]
    assert sum(value > 0.7 for value in dice) >= 6  # liver, lungs, spine and the like; the small ones come late
    assert sum(dice) / len(dice) > 0.4
