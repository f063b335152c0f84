"""Small folders of predictions and references with known mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
LABELS = {1: "liver", 2: "spleen"}


def reference_map() -> np.ndarray[Any, np.dtype[np.uint8]]:
    volume = np.zeros((14, 12, 10), np.uint8)
    volume[2:8, 2:8, 2:8], volume[9:12, 8:11, 5:8] = 1, 2
    return volume


def write_maps(folder: Path, maps: Mapping[str, Any], affine: Any = AFFINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume in maps.items():
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / name)
    return folder


def two_folders(root: Path) -> tuple[Path, Path]:
    """``perfect`` is right, ``shifted`` one voxel off, ``missed`` lacks the spleen; all have references."""
    truth = reference_map()
    references = {f"{name}.nii.gz": truth for name in ("perfect", "shifted", "missed")}
    predictions = {
        "perfect_seg.nii.gz": truth,
        "shifted_seg.nii.gz": np.roll(truth, 1, axis=0),
        "missed_seg.nii.gz": np.where(truth == 2, 0, truth).astype(np.uint8),
    }
    return write_maps(root / "predictions", predictions), write_maps(root / "references", references)


def write_labels(root: Path) -> Path:
    path = root / "labels.json"
    path.write_text(json.dumps({str(label): name for label, name in LABELS.items()}))
    return path
