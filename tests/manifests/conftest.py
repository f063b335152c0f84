"""A small sound dataset, and a way to write volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.ingest import save_nifti
from medseg.manifests import Manifest, create

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (8, 9, 10)

Write = Callable[..., Path]


def image_of(seed: int) -> NDArray[np.int16]:
    """Noise round 100."""
    return np.random.default_rng(seed).normal(100, 10, SHAPE).astype(np.int16)


def label_of(seed: int) -> NDArray[np.uint8]:
    """A block of label 1 that grows with the seed, and label 2 in every second case; the border is background."""
    label = np.zeros((6, 7, 8), np.uint8)
    label[1:3, 1:3, : 2 + seed % 5] = 1
    label[4, 4, 0] = 2 if seed % 2 else 0
    label[5, 5, seed % 8] = 1  # no two alike
    label[5, seed % 6, 7] = 1
    return np.pad(label, 1)


def write_case(folder: Path, name: str, seed: int) -> None:
    """An image and its label, in MSD's folders."""
    save_nifti(image_of(seed), AFFINE, folder / "imagesTr" / f"{name}.nii.gz")
    save_nifti(label_of(seed), AFFINE, folder / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve cases in two folders."""
    folder = tmp_path / "data"
    for seed in range(12):
        write_case(folder, f"case_{seed:02d}x", seed)
    return folder


@pytest.fixture
def manifest(dataset: Path) -> Manifest:
    """The datalist of the dataset, complete and split."""
    made = create(dataset / "imagesTr", dataset / "labelsTr")
    labels = {"0": "background", "1": "block", "2": "dot"}
    return made.with_content(labels=labels, licence="CC0").split(3, seed=0)
