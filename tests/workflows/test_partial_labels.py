"""Cases that were looked through for some structures only: planned, trained, validated and scored as that."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.evaluation import evaluate_folders
from medseg.files import write_json
from medseg.ingest import save_nifti
from medseg.planning import Budget, create_bundle
from medseg.training import train_bundle
from medseg.training.data import fold_items

_SHAPE = (20, 20, 20)


def _dataset(folder: Path) -> Path:
    """Two balls each; in the first and the last case nobody looked for the second one."""
    generator = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*map(np.arange, _SHAPE), indexing="ij"), axis=-1)
    items = []
    for case in range(4):
        balls = [np.linalg.norm(axes - centre, axis=-1) < 4 for centre in ((6, 10, 10), (14, 10, 10))]
        label = balls[0] * 1 + balls[1] * 2
        save_nifti(
            (label * 100 + generator.normal(0, 20, _SHAPE)).astype(np.float32), np.eye(4), folder / f"{case}.nii"
        )
        item = {"image": f"{case}.nii", "label": f"label{case}.nii", "fold": case // 2, "patient_id": f"p{case}"}
        if case in (0, 3):
            label[balls[1]] = 0
            item["annotated"] = ["first"]
        save_nifti(label.astype(np.uint8), np.eye(4), folder / f"label{case}.nii")
        items.append(item)
    labels = {"0": "background", "1": "first", "2": "second"}
    write_json(folder / "list.json", {"modality": {"0": "MRI"}, "labels": labels, "training": items})
    return folder / "list.json"


def test_what_nobody_looked_for_is_neither_learnt_nor_scored(tmp_path: Path) -> None:
    datalist = _dataset(tmp_path)
    bundle, plan = create_bundle("balls_mri_segmentation", datalist, tmp_path, budget=Budget(minutes=5))
    assert ("partly annotated", "2 of 4 cases") in [reason[:2] for reason in plan.reasons]
    assert Bundle.open(bundle).labels == {1: "first", 2: "second"}
    cases = fold_items(datalist, None, 0, "training")
    assert [case.get("annotated") for case in cases] == [None, ["first"]]
    short = {"epochs": 1, "iterations": 2, "val_interval": 1, "warm_up": 0, "ramp": 1, "patch_size": [16, 16, 16]}
    train_bundle(bundle, fold=0, output=tmp_path / "run", device="cpu", overrides=short)
    with (tmp_path / "run" / "metrics.csv").open() as handle:
        (last,) = list(csv.DictReader(handle))
    assert float(last["loss"]) > 0
    assert {"val_dice_first", "val_dice_second"} <= last.keys()
    found = evaluate_folders(datalist, datalist, tmp_path / "scores")
    assert {(row.case_id, row.dice) for row in found.results if row.name == "second"} == {
        ("0", None), ("1", 1.0), ("2", 1.0), ("3", None),
    }  # fmt: skip
    assert found.summary["structures"]["second"]["n_not_annotated"] == 2


def test_a_bundle_that_would_take_unknown_for_background_refuses(tmp_path: Path) -> None:
    datalist = _dataset(tmp_path)
    plain = json.loads(datalist.read_text())
    for item in plain["training"]:
        item.pop("annotated", None)
    write_json(tmp_path / "plain.json", plain)
    bundle, _ = create_bundle("balls_mri_segmentation", tmp_path / "plain.json", tmp_path, budget=Budget(minutes=5))
    with pytest.raises(UsageError, match="partly annotated case, which the bundle does not apply"):
        train_bundle(bundle, datalist=datalist, fold=0, output=tmp_path / "run", device="cpu")
