"""Two ways of storing one grid: axes in another order or direction are undone without touching a value."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Geometry

__all__ = ["along"]


def along(array: NDArray[Any], grid: Geometry, target: Geometry) -> tuple[NDArray[Any], Geometry]:
    """Permute and flip the axes of a volume so that they run as closely as possible like ``target``'s.

    No value is interpolated and every voxel stays at its place in the patient.

    Returns
    -------
    array, Geometry
        A view of the volume and its new grid; both unchanged if the axes run that way already.
    """
    turn = nib.io_orientation(np.linalg.solve(target.affine, grid.affine))
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return array, grid
    turned = np.asarray(nib.orientations.apply_orientation(array, turn))
    return turned, Geometry(turned.shape, grid.affine @ nib.orientations.inv_ornt_aff(turn, array.shape))
