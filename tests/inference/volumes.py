"""Small volumes with awkward grids."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter


def grid(kind: str) -> NDArray[np.float64]:
    """Affines (RAS, mm): plain, flipped and permuted, oblique, sheared by a gantry tilt."""
    affine = np.diag([1.1, 1.4, 2.6, 1.0])
    affine[:3, 3] = (-20.0, 13.0, 5.0)
    if kind == "permuted":
        affine = affine[:, [2, 0, 1, 3]]
        affine[:3, 0] *= -1
    if kind == "oblique":
        a, b = np.radians(25), np.radians(-12)
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        tip = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        affine[:3, :3] = turn @ tip @ affine[:3, :3]
    if kind == "sheared":
        affine[1, 2] = np.tan(np.radians(15)) * affine[2, 2]
    return affine


def blobs(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float32]:
    """Smooth random intensities from about 0 to 50."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = gaussian_filter(noise, 3.0)
    smooth -= smooth.min()
    return np.asarray(smooth / smooth.max() * 50, dtype=np.float32)


def meta_tensor(array: NDArray[np.float32], affine: NDArray[np.float64]) -> MetaTensor:
    return MetaTensor(array[None], affine=affine)


def save(array: NDArray[np.float32], affine: NDArray[np.float64], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def load(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    image = nib.load(path)
    return np.asarray(image.dataobj).astype(np.int64), np.asarray(image.affine, dtype=np.float64)
