"""Damaged labels for the fuzzer: DICOM segmentations and structure sets beside the series that they refer to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from benchmarks.fuzz_damage import Form
from medseg.labels import read_label
from tests.labels.objects import label_map, masks, ring, save, scheme, segmentation, series, structure_set

_VICTIM = "label.dcm"
Files = tuple[str, dict[str, bytes], str, Form]


def label_files(root: Path) -> list[Files]:
    """Name, files, the one to damage and its form: a series with a segmentation of each type, and a structure set."""
    of = series(root / "series")
    images = {f"image/{path.name}": path.read_bytes() for path in sorted(of.folder.iterdir())}
    parts = masks()
    fractions = {name: np.where(mask, 200, 0).astype(np.uint8) for name, mask in parts.items()}
    outlines = {"liver": [ring((1, 5), (2, 6), k) for k in (1, 2, 3)], "tumour": [ring((5, 7), (1, 3), 4)]}
    objects: dict[str, Dataset] = {
        "binary": segmentation(of),
        "fractional": segmentation(of, fractions, "FRACTIONAL"),
        "labelmap": segmentation(of, kind="LABELMAP"),
        "structure set": structure_set(of, outlines),
    }
    raw = {name: save(dataset, root / f"{name}.dcm").read_bytes() for name, dataset in objects.items()}
    return [(name, {**images, _VICTIM: content}, _VICTIM, "bytes") for name, content in raw.items()]


def read_damaged(case: Path) -> str:
    """What became of the label, if it was not refused."""
    found = read_label(case / _VICTIM, scheme=scheme(), image=case / "image")
    if found.array.shape != found.geometry.shape or not set(np.unique(found.array)) <= {0, 1, 2}:
        return f"FAILED a label map of shape {found.array.shape} with {np.unique(found.array)}"
    if found.array.shape != label_map().shape:
        return "read as an image"  # of a SOP class that is damaged; its grid is not that of the case, which is refused
    return "read, noted" if found.notes else "read"
