"""Synthetic result folders in the form that ``infer`` and ``evaluate`` leave, for the report's tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.evaluation.case import StructureResult, evaluate_case
from medseg.evaluation.tables import write_csv
from medseg.files import write_json
from medseg.geometry import Geometry

__all__ = ["NAMES", "Folders", "make_folders", "read_nifti"]

NAMES = {1: "anterior hippocampus", 2: "posterior hippocampus"}
_SPACING_MM = (1.0, 1.2, 1.5)
_SHAPE = (48, 56, 40)


@dataclass(frozen=True)
class Folders:
    """Where the parts of a synthetic study lie."""

    results: Path
    images: Path
    references: Path
    case_ids: tuple[str, ...]


def make_folders(
    root: Path, case_ids: Sequence[str], *, trust: bool = True, refused: int = 0, seed: int = 0
) -> Folders:
    """Write images, references, predictions of falling quality, run.json, metrics.csv; the last case misses label 2."""
    folders = Folders(root / "results", root / "images", root / "references", tuple(case_ids))
    for folder in (folders.results, folders.images, folders.references):
        folder.mkdir(parents=True)
    affine = np.diag([*_SPACING_MM, 1.0])
    affine[:3, 3] = (-20.0, -30.0, -25.0)
    rng = np.random.default_rng(seed)
    results: list[StructureResult] = []
    items = []
    for i, case_id in enumerate(case_ids):
        reference = _labels(np.zeros(3), 1.0)
        quality = i / max(len(case_ids) - 1, 1)
        prediction = _labels(rng.normal(0, 0.4 + 2.2 * quality, 3), 1.0 - 0.25 * quality * rng.random())
        if i == len(case_ids) - 1:
            prediction[prediction == 2] = 0
        image = (
            200.0 + 90.0 * (reference > 0) + rng.normal(0, 25, _SHAPE) + np.linspace(0, 120, _SHAPE[1])[None, :, None]
        )
        _save(image.astype(np.int16), affine, folders.images / f"{case_id}.nii.gz")
        _save(reference, affine, folders.references / f"{case_id}.nii.gz")
        _save(prediction, affine, folders.results / f"{case_id}_seg.nii.gz")
        scored = evaluate_case(prediction, reference, _SPACING_MM, NAMES)
        results += [StructureResult(s.label, s.name, s.values, s.missed, s.invented, case_id=case_id) for s in scored]
        dice = float(np.mean([s.values["dice"] or 0.0 for s in scored]))
        items.append(
            _item(case_id, folders, scored, float(np.clip(dice + rng.normal(0, 0.04), 0, 1)) if trust else None)
        )
    for i in range(refused):
        message = f"found 19 of 20 slices in {folders.images}/Doe^Jane/19 SECRET, expected all; fetch it again"
        items.append(
            {
                "case_id": f"series-{i:012x}",
                "source": "/in/Doe^Jane",
                "status": "refused",
                "reason": "missing-slices",
                "message": message,
                "outputs": [],
            }
        )
    write_json(folders.results / "run.json", _run(items))
    write_csv(folders.results / "metrics.csv", results)
    return folders


def _labels(shift_mm: NDArray[np.float64], scale: float) -> NDArray[np.uint8]:
    grid = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(_SHAPE, _SPACING_MM, strict=True)), indexing="ij"), -1
    )
    centre = (np.array(_SHAPE) * _SPACING_MM) / 2 + shift_mm
    inside = (((grid - centre) / (np.array([8.0, 20.0, 10.0]) * scale)) ** 2).sum(-1) <= 1
    hole = (((grid - centre) / 3.0) ** 2).sum(-1) <= 1
    labels = np.where(grid[..., 1] > centre[1], 1, 2) * (inside & ~hole)
    return np.asarray(labels, np.uint8)


def _save(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def _item(case_id: str, folders: Folders, scored: Sequence[StructureResult], predicted: float | None) -> dict[str, Any]:
    item: dict[str, Any] = {
        "case_id": case_id,
        "source": str(folders.images / f"{case_id}.nii.gz"),
        "status": "done",
        "reason": None,
        "message": "",
        "seconds": 0.42,
        "outputs": [f"{case_id}_seg.nii.gz"],
        "structures": [{"label": s.label, "name": s.name, "volume_ml": s.values["volume_ml"]} for s in scored],
    }
    if predicted is not None:
        item["trust"] = _trust(scored, predicted)
    return item


def _trust(scored: Sequence[StructureResult], predicted: float) -> dict[str, Any]:
    """A verdict with estimates that miss the truth as much for each structure; the worst cases are flagged."""
    predicted, lower = round(predicted, 6), round(max(predicted - 0.08, 0.0), 6)
    structures = [{"label": s.label, "name": s.name, "predicted_dice": predicted, "lower_bound": lower} for s in scored]
    return {
        "predicted_dice": predicted,
        "lower_bound": lower,
        "verdict": "accept" if predicted > 0.85 else "review" if predicted > 0.7 else "reject",
        "structures": structures,
        "flags": ["unlike-training"] if predicted < 0.5 else [],
        "look_at_mm": [0.0, 0.0, 0.0],
    }


def _run(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "medseg": "0.1.0",
        "bundle": {"name": "hippocampus_mr_segmentation", "version": "1.0.0", "sha256": "ab" * 32},
        "device": "cpu",
        "precision": "fp32",
        "started": "2026-01-01T10:00:00",
        "finished": "2026-01-01T10:05:00",
        "trust": {"state": "ready", "coverage": 0.9, "thresholds": {"accept": 0.77, "reject": 0.7}},
        "cases": json.loads(json.dumps(items)),
        "summary": {},
    }


def read_nifti(source: str | Path, case_id: str) -> tuple[NDArray[Any], Geometry]:
    """Stand-in for the readers: NIfTI only."""
    path = Path(source)
    if not path.name.endswith(".nii.gz"):
        raise Refusal("not-an-image", f"{case_id}: not a NIfTI file")
    image = nib.load(path)
    return np.asanyarray(image.dataobj), Geometry(image.shape, image.affine)


EVALUATION: dict[str, Any] = {
    "predictions": "p",
    "references": "r",
    "n_unpaired": 1,
    "warnings": ["w"],
    "trained_on": {"n": 1, "of": 2, "case_ids": ["a"]},
    "definitions": {"tolerance_mm": 1.0, "percentile_rule": "x"},
    "structures": {"liver": {"label": 1, "n": 2, "metrics": {"dice": {"mean": 0.5, "ci95": [0.1, 0.9]}}}},
    "cases": [{"case_id": "a", "prediction": "p", "reference": "r", "prediction_case_id": "b"}],
}
"""A sound ``metrics.json``, with every key that a reader looks at."""
