"""On request: uneven slice spacing, or a gantry tilt, linearly onto a regular grid with perpendicular axes.

What lies outside the scan takes its lowest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.geometry import POSITION_TOLERANCE_MM, Geometry, lps_to_ras
from medseg.ingest.slice_geometry import Vectors, axes_of, normal_of
from medseg.ingest.stacks import Stack
from medseg.resources import check_volume_size

_WHOLE_PIXEL = 1e-6


@dataclass(frozen=True)
class Remedy:
    """How one stack is brought onto a regular grid (DICOM's LPS frame).

    ``distances_mm`` are the positions of the slices along ``normal`` from the first, ``spacing_mm`` that of the new
    slices, the columns of ``in_plane`` (3×2) the vectors from pixel to pixel along i and j, ``shift_pixels`` (n×2) the
    shift of each slice along them against the first.
    """

    because: str
    distances_mm: Vectors
    spacing_mm: float
    in_plane: Vectors
    shift_pixels: Vectors
    normal: Vectors
    origin: Vectors

    def describe(self) -> dict[str, Any]:
        """For the record: what was done to the volume."""
        return {
            "because": self.because,
            "method": "linear",
            "slice_positions_mm": [round(float(d), 4) for d in self.distances_mm],
            "new_spacing_mm": self.spacing_mm,
            "largest_shift_pixels": round(float(np.abs(self.shift_pixels).max()), 4),
        }


def plan(stack: Stack) -> Remedy | None:
    """What would make the stack regular; ``None`` if it needs no remedy or none of these helps."""
    tilted = stack.geometry is not None and stack.geometry.is_sheared
    if not tilted and stack.reason != "non-uniform-spacing":
        return None
    first = stack.headers[0]
    if first.pixel_spacing is None:
        return None
    normal = normal_of(first)
    positions = np.array([header.position for header in stack.headers], dtype=np.float64)
    offsets = positions - positions[0]
    row, column = axes_of(first)
    in_plane = np.stack([row * first.pixel_spacing[1], column * first.pixel_spacing[0]], axis=1)
    shifts = np.linalg.lstsq(in_plane, offsets.T, rcond=None)[0].T
    distances = offsets @ normal
    largest_mm = float(np.abs(shifts * [first.pixel_spacing[1], first.pixel_spacing[0]]).max())
    gaps = np.diff(distances)
    uneven = stack.reason == "non-uniform-spacing"
    return Remedy(
        because="uneven slice spacing" if uneven else "gantry tilt",
        distances_mm=distances,
        spacing_mm=float(gaps.min() if uneven else gaps.mean()),
        in_plane=in_plane,
        shift_pixels=shifts if largest_mm > POSITION_TOLERANCE_MM else np.zeros_like(shifts),
        normal=normal,
        origin=positions[0],
    )


def apply(remedy: Remedy, values: NDArray[Any]) -> tuple[NDArray[Any], Geometry]:
    """Resample values with axes (i, j, k) as planned; the grid covers every slice whole."""
    low = np.floor(np.minimum(remedy.shift_pixels.min(axis=0), 0) + 1e-6).astype(int)
    high = np.ceil(np.maximum(remedy.shift_pixels.max(axis=0), 0) - 1e-6).astype(int)
    count = int(np.floor(remedy.distances_mm[-1] / remedy.spacing_mm + 1e-3)) + 1
    shape = (values.shape[0] + int(high[0] - low[0]), values.shape[1] + int(high[1] - low[1]), count)
    check_volume_size(shape, values.dtype.itemsize)
    # Each slice straight below the first, then between the slices.
    outside = float(values.min())
    straight = np.empty((*shape[:2], values.shape[2]), values.dtype, order="F")
    for k, shift in enumerate(remedy.shift_pixels):
        straight[..., k] = _shifted(values[..., k], shift - low, shape[:2], outside)
    wanted = np.minimum(np.arange(count) * remedy.spacing_mm, remedy.distances_mm[-1])
    upper = np.clip(np.searchsorted(remedy.distances_mm, wanted, side="right"), 1, len(remedy.distances_mm) - 1)
    below, above = remedy.distances_mm[upper - 1], remedy.distances_mm[upper]
    weights = (wanted - below) / (above - below)
    result = np.empty(shape, values.dtype, order="F")
    for k, (index, weight) in enumerate(zip(upper, weights, strict=True)):
        mixed = straight[..., index - 1] * (1 - weight) + straight[..., index] * weight
        result[..., k] = mixed if values.dtype.kind == "f" else np.rint(mixed)
    affine = np.eye(4)
    step, origin = remedy.normal * remedy.spacing_mm, remedy.origin + remedy.in_plane @ low
    affine[:3] = np.column_stack([remedy.in_plane, step, origin])
    return result, Geometry(shape, lps_to_ras(affine))


def _shifted(plane: NDArray[Any], shift: Vectors, shape: tuple[int, int], outside: float) -> NDArray[Any]:
    """The plane moved by ``shift`` pixels within a plane of ``shape``."""
    whole = np.rint(shift)
    # A shift that is whole but for rounding noise must not push the first or last row outside.
    shift = np.where(np.abs(shift - whole) < _WHOLE_PIXEL, whole, shift)
    if (shift == whole).all():
        moved = np.full(shape, outside, plane.dtype)
        i, j = whole.astype(int)
        moved[i : i + plane.shape[0], j : j + plane.shape[1]] = plane
        return moved
    exact = ndimage.affine_transform(
        plane.astype(np.float64), np.ones(2), -shift, output_shape=shape, order=1, mode="constant", cval=outside
    )
    return np.asarray(exact if plane.dtype.kind == "f" else np.rint(exact)).astype(plane.dtype)
