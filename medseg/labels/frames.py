"""Where the frames of a segmentation lie: on a grid, as slices of it, or on the smallest grid of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import SPACING_TOLERANCE_FRACTION, Geometry, lps_to_ras
from medseg.resources import check_volume_size

TOLERANCE_VOXELS: Final = 0.1
"""How far a pixel of a frame may lie from its voxel, and a contour from its slice: rounding, no other place."""

_CLOSEST_SLICES_MM: Final = 0.01


@dataclass(frozen=True)
class FramePlace:
    """Where one frame lies, in DICOM's frame (LPS+, mm)."""

    position: NDArray[np.float64]
    steps: NDArray[np.float64]  # rows: to the next column, to the next row


class GridPlaces:
    """Finds frames in a grid.

    ``geometry``: The grid. ``shape``: Rows and columns of every frame.
    """

    def __init__(self, geometry: Geometry, shape: tuple[int, int]) -> None:
        self._geometry, self._shape = geometry, shape
        self._to_index = np.linalg.inv(lps_to_ras(geometry.affine))

    def index(self, frame: FramePlace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Index of the first pixel, and index steps to the next column and row."""
        matrix = self._to_index[:3, :3]
        return matrix @ frame.position + self._to_index[:3, 3], frame.steps @ matrix.T

    def misfit(self, frames: Sequence[FramePlace]) -> str:
        """Why frames are no slices of the grid; empty if they are."""
        extent = np.array([self._shape[1], self._shape[0]]) - 1
        for frame in frames:
            first, steps = self.index(frame)
            whole = np.rint(steps)
            if sorted(np.abs(whole).sum(axis=1)) != [1, 1] or whole[0] @ whole[1]:
                return (
                    f"lies along other axes, or has pixels of another size, than the grid {self._geometry.describe()}"
                )
            if np.abs((steps - whole) * extent[:, None]).max(initial=0.0) > TOLERANCE_VOXELS:
                return f"has pixels of another size or direction than the grid {self._geometry.describe()}"
            off = float(np.abs(first - np.rint(first)).max())
            if off > TOLERANCE_VOXELS:
                return f"lies {off:.2g} of a voxel beside the voxels of the grid {self._geometry.describe()}"
        return ""

    def origin(self, frame: FramePlace) -> tuple[int, ...]:
        """The voxel in which a frame's first pixel lies."""
        return tuple(np.rint(self.index(frame)[0]).astype(int).tolist())

    def sparse(self, frames: Sequence[FramePlace], spacing_mm: float | None, thickness_mm: float | None) -> str:
        """Why frames that are slices of the grid were drawn on fewer slices than it has; empty if they were not.

        ``spacing_mm``, ``thickness_mm``: The distance and thickness of slices that the object states. Slices without a
        frame are empty, unless the distance says that frames were thicker, or it is not stated and every second (third,
        …) slice has one.
        """
        across = int(np.argmin(np.abs(self.index(frames[0])[1]).sum(axis=0)))
        places = sorted({self.origin(frame)[across] for frame in frames})
        every = math.gcd(*(after - before for before, after in pairwise(places)))
        step = self._geometry.spacing_mm[across]
        stated = spacing_mm or thickness_mm
        if every == 1 or (not spacing_mm and len(places) < 3) or (stated and stated < 1.5 * step):
            return ""
        found = f"{spacing_mm:.3g} mm apart" if spacing_mm else f"on every {every}. slice alone"
        return f"has slices {found}, the grid's are {step:.3g} mm apart ({self._geometry.describe()})"

    def view(self, volume: NDArray[Any], frame: FramePlace) -> tuple[NDArray[Any], tuple[slice, slice]] | None:
        """The part of ``volume`` that a frame shows, as (row, column), and which part of the frame that is.

        ``None`` if the frame lies outside the grid. Writing to the view writes to the volume.
        """
        first, steps = self.index(frame)
        origin, whole = np.rint(first).astype(int), np.rint(steps).astype(int)
        column_axis, row_axis = (int(np.flatnonzero(step)[0]) for step in whole)
        across = 3 - column_axis - row_axis
        if not 0 <= origin[across] < self._geometry.shape[across]:
            return None
        plane = np.moveaxis(volume, across, 0)[origin[across]]
        plane = plane.T if column_axis < row_axis else plane
        found = []
        for axis, step, count in ((row_axis, whole[1], self._shape[0]), (column_axis, whole[0], self._shape[1])):
            part = _overlap(int(origin[axis]), int(step[axis]), count, self._geometry.shape[axis])
            if part is None:
                return None
            found.append(part)
        (rows, own_rows), (columns, own_columns) = found
        return plane[rows, columns], (own_rows, own_columns)


def _overlap(start: int, step: int, count: int, size: int) -> tuple[slice, slice] | None:
    """Indices start, start + step, … (count of them, step 1 or -1) within [0, size): of the grid, of the frame."""
    low, high = (
        (max(0, -start), min(count, size - start)) if step > 0 else (max(0, start - size + 1), min(count, start + 1))
    )
    if low >= high:
        return None
    begin, last = start + step * low, start + step * (high - 1)
    stop = last + step
    return slice(begin, stop if stop >= 0 else None, step), slice(low, high)


def grid_of_frames(
    frames: Sequence[FramePlace], shape: tuple[int, int], thickness_mm: float | None, name: str
) -> Geometry:
    """The smallest regular grid that holds all frames, its axes along columns, rows and slices.

    ``thickness_mm``: distance of neighbouring slices, if the object states it: what a single slice has no other word
    for. Raises ``Refusal``: ``no-geometry`` if they lie on none, ``too-large``.
    """
    first = frames[0]
    if any(np.abs(frame.steps - first.steps).max() > 1e-3 * np.abs(first.steps).max() for frame in frames):
        raise Refusal("no-geometry", f"{name} has frames of several directions or pixel sizes; give its image with it")
    normal = np.cross(first.steps[0], first.steps[1])
    normal /= np.linalg.norm(normal)
    positions = np.stack([frame.position for frame in frames])
    along = positions @ normal
    order = np.argsort(along)
    gaps = np.diff(along[order])
    gaps = gaps[gaps > _CLOSEST_SLICES_MM]
    ends = positions[order[0]], positions[order[-1]]
    if not len(gaps):
        if not thickness_mm or thickness_mm <= 0:
            raise Refusal("no-geometry", f"{name} has one slice of unknown thickness; give its image with it")
        count, step = 1, normal * thickness_mm
    else:
        spacing = _spacing(gaps, thickness_mm)
        count = round(float(gaps.sum()) / spacing) + 1
        step = (ends[1] - ends[0]) / (count - 1)
    check_volume_size((*shape, count), 2)
    index = np.rint((along - along.min()) / max(float(step @ normal), 1e-9))
    off = np.linalg.norm(positions - ends[0] - index[:, None] * step, axis=1).max()
    if off > max(0.05, SPACING_TOLERANCE_FRACTION * float(np.linalg.norm(step))):
        raise Refusal("no-geometry", f"{name} has frames up to {off:.2g} mm off any regular grid; give its image, too")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = *first.steps, step, ends[0]
    return Geometry((shape[1], shape[0], count), lps_to_ras(affine))


def _spacing(gaps: NDArray[np.float64], stated_mm: float | None) -> float:
    """The spacing of which all gaps are multiples: the stated one if it is, else the smallest gap."""
    smallest = float(gaps.min())
    if stated_mm and stated_mm > 0:
        times = gaps / stated_mm
        if times.min() > 0.5 and np.abs(times - np.rint(times)).max() <= TOLERANCE_VOXELS:
            return stated_mm
    return smallest


def nearest(labels: NDArray[Any], grid: Geometry, target: Geometry) -> NDArray[Any]:
    """Labels on another grid: those of the nearest voxel, background outside."""
    from scipy.ndimage import affine_transform

    matrix = np.linalg.solve(grid.affine, target.affine)
    # "constant" would take a voxel that lies a rounding error outside for background, "grid-constant" does not
    return np.asarray(
        affine_transform(labels, matrix, output_shape=target.shape, order=0, mode="grid-constant", cval=0)
    )
