"""How a slice is held when it is looked at: which way it is turned, what its edges are, how large its pixels are.

The convention is the radiological one, and that of DICOM's usual axial, coronal and sagittal images: the patient's
right on the viewer's left, anterior on the left of sagittal slices, anterior or superior on top. Each structure has one
colour.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

_PLANES = ("sagittal", "coronal", "axial")
# By patient axis that is looked along: the one that runs to the right. It and the one that runs down do so towards
# their low end (left or posterior; posterior or inferior).
_TO_THE_RIGHT = (1, 0, 0)
_LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
_NAMED_FROM = 0.35
"""Part of a direction (20 degrees off an axis) from which its letter is worth naming beside the main one."""


@dataclass(frozen=True)
class View:
    """How slices of one direction are turned, and what can be said of them then."""

    plane: str  # ``"axial"``, ``"coronal"`` or ``"sagittal"``: the nearest
    left: str
    right: str
    top: str
    bottom: str
    """``left``, ``right``, ``top``, ``bottom``: towards which side of the patient each edge lies, such as ``"R"`` or,
    oblique, ``"RA"``; empty if not known."""
    pixel_mm: tuple[float, float]  # distance between columns and between rows
    transposed: bool
    flips: tuple[bool, bool]
    """``transposed``, ``flips``: whether rows and columns change places, then which of (rows, columns) run
    backwards."""

    def upright(self, plane: NDArray[Any]) -> NDArray[Any]:
        """A slice as it is stored, (row, column), turned as it is looked at."""
        turned = plane.T if self.transposed else plane
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return turned[rows, columns]


def view_along(affine: NDArray[np.float64] | None, axis: int) -> View:
    """View of the slices ``np.take(volume, index, axis)``.

    Parameters
    ----------
    affine
        4×4, voxel index → RAS mm. None if it is not known: the volume is then held as if its axes ran to the right,
        anterior and superior, in voxels of 1 mm, and its edges have no letters.
    axis
        Array axis that is looked along.
    """
    steps = np.eye(3) if affine is None else np.asarray(affine, np.float64)[:3, :3]
    down, across = (other for other in range(3) if other != axis)
    return _view(steps[:, [across, down, axis]], known=affine is not None)


def view_of_frame(across: ArrayLike, down: ArrayLike) -> View:
    """View of an image whose columns and rows are these steps apart in the patient (RAS, mm)."""
    column, row = np.asarray(across, np.float64), np.asarray(down, np.float64)
    return _view(np.stack([column, row, np.cross(column, row)], axis=1), known=True)


def _view(steps: NDArray[np.float64], *, known: bool) -> View:
    """View of a slice by its steps to the next column, row and slice (RAS mm, as columns)."""
    affine = np.eye(4)
    affine[:3, :3] = steps
    axes = [(int(axis), float(sign)) for axis, sign in nib.io_orientation(affine)]
    transposed = axes[0][0] != _TO_THE_RIGHT[axes[2][0]]
    order = (1, 0) if transposed else (0, 1)
    # Both directions of the picture run towards the low end of their patient axis.
    backwards = [axes[step][1] > 0 for step in order]
    across_mm, down_mm = (steps[:, step] * (-1 if flip else 1) for step, flip in zip(order, backwards, strict=True))
    left, right, top, bottom = (_letters(v) if known else "" for v in (-across_mm, across_mm, -down_mm, down_mm))
    size = (float(np.linalg.norm(across_mm)), float(np.linalg.norm(down_mm)))
    flips = (backwards[1], backwards[0])
    return View(_PLANES[axes[2][0]], left, right, top, bottom, size, transposed, flips)


def _letters(direction: Sequence[float] | NDArray[np.float64]) -> str:
    """Where a direction points to, the main side first, as in DICOM's Patient Orientation (PS3.3, C.7.6.1.1.1)."""
    unit = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    named = [axis for axis in np.argsort(-np.abs(unit)) if abs(unit[axis]) >= _NAMED_FROM]
    return "".join(_LETTERS[axis][int(unit[axis] < 0)] for axis in named)


# Okabe and Ito's palette: distinguishable with every common colour vision deficiency, and over grey images.
_PALETTE = ("#f0b000", "#3fb4ee", "#12b886", "#f0722c", "#e07bb4", "#f2e545", "#6f8df7")


def colour(index: int) -> str:
    """Colour of the structure with this position in the list of structures, as ``#rrggbb``."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = colorsys.hls_to_rgb(
        (index * 0.618034) % 1.0, 0.62, 0.72
    )  # the golden ratio keeps neighbours apart
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def rgb(text: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three numbers from 0 to 255."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
