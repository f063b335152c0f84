"""Whole volumes with a structure on the left and one on the right, as functions of the patient's coordinates.

Each part is a shell (20, labelled ``small``) round a core (40, labelled ``large``), which is what is located; two
landmarks far out on either side tell where the patient's middle is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import save

LEFT, RIGHT = (-12.0, 0.0, 0.0), (12.0, 0.0, 0.0)
LANDMARKS = ((-28.0, 0.0, 0.0), (28.0, 0.0, 0.0))
SHAPE = (65, 41, 33)
RANGE = {"spacing_mm": {"low": [0.9] * 3, "high": [1.5] * 3}, "fov_mm": {"low": [16.0] * 3, "high": [24.0] * 3}}
Floats = NDArray[np.float64]


def affine_of(kind: str, shape: Sequence[int] = SHAPE) -> Floats:
    """A grid of 1 mm whose middle voxel is the origin: RAS, with axes turned round, oblique, or sheared."""
    linear = np.eye(3)
    if kind == "LPS":
        linear = np.diag([-1.0, -1.0, 1.0])
    if kind == "oblique":
        a, b = np.radians(25), np.radians(-12)
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        linear = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    if kind == "sheared":
        linear = np.array([[1, 0.25, 0], [0, 1, -0.2], [0.1, 0, 1]])
    if kind == "AIL":
        linear = np.array([[0, 0, -1.0], [1.0, 0, 0], [0, -1.0, 0]])
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.asarray(shape) - 1) / 2)
    return affine


def shape_of(kind: str) -> tuple[int, int, int]:
    """The shape whose axes run as the grid's."""
    return (41, 33, 65) if kind == "AIL" else SHAPE


def places(affine: Floats, shape: Sequence[int]) -> Floats:
    """Position of every voxel, ``(3, H, W, D)``."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)


def within(where: Floats, centre: Sequence[float], radius: float) -> NDArray[np.bool_]:
    """The cube with this half edge round a point."""
    return np.asarray(np.abs(where - np.reshape(centre, (3, 1, 1, 1))).max(axis=0) < radius)


def head(where: Floats, parts: Sequence[tuple[Sequence[float], float]], landmarks: bool = True) -> NDArray[np.float32]:
    """An image with parts, each a centre and the radius of its core, in the order in which they are painted."""
    image = np.zeros(where.shape[1:], dtype=np.float32)
    for landmark in LANDMARKS if landmarks else ():
        image[within(where, landmark, 2.2)] = 20
    for centre, radius in parts:
        image[within(where, centre, radius + 2)] = 20
        image[within(where, centre, radius)] = 40
    return image


def labelled(where: Floats, parts: Sequence[tuple[Sequence[float], float]], shift: int = 0) -> NDArray[np.int64]:
    """What the thresholding network says of these parts, ``shift`` added."""
    image = head(where, parts, landmarks=False)
    return np.where(image > 0, np.where(image > 30, 2, 1) + shift, 0)


def save_head(
    folder: Path, kind: str, parts: Sequence[tuple[Sequence[float], float]], landmarks: bool = True
) -> tuple[Path, Floats]:
    """Write such a volume; its file and the position of every voxel."""
    affine, shape = affine_of(kind, shape_of(kind)), shape_of(kind)
    where = places(affine, shape)
    return save(head(where, parts, landmarks), affine, folder / f"{kind}.nii.gz"), where


def two_bundles(folder: Path) -> tuple[Path, Path]:
    """One that labels whole volumes, and one that takes crops of 16 to 24 mm alone."""
    first = write_bundle(folder / "finder", Design(transforms=ORIENTED))
    return first, write_bundle(folder / "crops", Design(transforms=ORIENTED, training_range=RANGE))
