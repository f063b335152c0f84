"""What the audit measures of a label map beside its values: pieces, cavities, the border, the place, the image's edges.

Structure by structure in its own box, so that little besides the volumes themselves is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.geometry import Geometry
from medseg.labels.label_map import Box, find_boxes

SMALL_ML = 0.1
"""An island or a hole below this volume, 100 mm³, is called tiny."""

SHIFT_MM = 3.0
"""How far beside the surface of a label the image's edges are compared with those at it."""

_SMALL_SHARE = 0.05
"""An island is no lesion of its own only if it is smaller than this share of its structure, too."""

_MARGIN = 4
_SURFACE_POINTS, _FEWEST_POINTS = 20_000, 100
_BLUR_VOXELS = 1.0

Mask = NDArray[np.bool_]
_Index = NDArray[np.intp]


@dataclass(frozen=True)
class LabelShape:
    """One structure of one label map in numbers."""

    centre_mm: tuple[float, float, float]  # its centre of mass relative to the centre of the grid, in mm, RAS+
    pieces: int = 1  # connected components (26 neighbours)
    islands_ml: tuple[float, ...] = ()
    """Volumes of the components that are tiny: below 0.1 ml and below 5 % of the structure; the largest is none."""
    holes_ml: tuple[float, ...] = ()  # volumes of background below 0.1 ml that the structure encloses (6 neighbours)
    border_mm2: float = 0.0  # area with which it touches the outer faces of the grid


def shapes_of(labels: NDArray[Any], geometry: Geometry) -> dict[int, LabelShape]:
    """Every structure of a label map, axes (i, j, k), by value."""
    centre = (np.array(labels.shape) - 1) / 2
    return {
        value: _shape(labels[box] == value, labels[box], box, geometry, centre)
        for value, box in find_boxes(labels).items()
    }


def _shape(mask: Mask, labels: NDArray[Any], box: Box, geometry: Geometry, centre: NDArray[np.float64]) -> LabelShape:
    voxel_ml = geometry.voxel_volume_mm3 / 1000.0
    start = np.array([side.start for side in box])
    place = geometry.affine[:3, :3] @ (np.array(ndimage.center_of_mass(mask)) + start - centre)
    components, pieces = cc3d.connected_components(mask.view(np.uint8), connectivity=26, return_N=True)
    sizes_ml = np.bincount(components[mask])[1:] * voxel_ml if pieces > 1 else np.zeros(0)
    limit_ml = min(SMALL_ML, _SMALL_SHARE * float(sizes_ml.sum()))
    islands = sorted(np.delete(sizes_ml, sizes_ml.argmax()).tolist() if pieces > 1 else [], reverse=True)
    return LabelShape(
        centre_mm=(float(place[0]), float(place[1]), float(place[2])),
        pieces=int(pieces),
        islands_ml=tuple(size for size in islands if size < limit_ml),
        holes_ml=tuple(size for size in _holes_ml(labels, voxel_ml) if size < SMALL_ML) if mask.size > 8 else (),
        border_mm2=_border_mm2(mask, box, geometry),
    )


def _holes_ml(labels: NDArray[Any], voxel_ml: float) -> list[float]:
    """Volumes of the background that does not reach the outside of a structure's box; other structures are no holes."""
    outside = np.pad(labels == 0, 1, constant_values=True)
    components, count = cc3d.connected_components(outside.view(np.uint8), connectivity=6, return_N=True)
    if count < 2:
        return []
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[[0, int(components[0, 0, 0])]] = 0
    return [float(size * voxel_ml) for size in sizes[sizes > 0]]


def _border_mm2(mask: Mask, box: Box, geometry: Geometry) -> float:
    columns = geometry.affine[:3, :3]
    area_mm2 = 0.0
    for axis, size in enumerate(geometry.shape):
        one, other = (columns[:, a] for a in range(3) if a != axis)
        voxel_mm2 = float(np.linalg.norm(np.cross(one, other)))
        ends = [index for index, there in ((0, box[axis].start == 0), (-1, box[axis].stop == size)) if there]
        area_mm2 += voxel_mm2 * sum(int(np.count_nonzero(mask.take(index, axis))) for index in ends)
    return area_mm2


def edge_fit(image: NDArray[Any], labels: NDArray[Any], geometry: Geometry) -> float | None:
    """How much stronger the image's edges are at the surfaces of the labels than 3 mm beside them.

    The gradient of the image (one channel, axes (i, j, k) as those of ``labels``) along the normal of the surface, in
    absolute value and averaged over the surface, divided by the mean of the same after shifts of 3 mm (at least a
    voxel) in 26 directions: 1 if the label could lie anywhere. None if too little of the surface is away from the
    image's border, or the image has no edges.
    """
    spacing_mm = np.array(geometry.spacing_mm)
    reach = np.maximum(1, np.rint(SHIFT_MM / spacing_mm)).astype(np.intp)
    offsets = [np.array(way) * reach for way in product((0, -1, 1), repeat=3)]  # the first is no shift
    sums = np.zeros(len(offsets))
    points = 0
    for index, normals in _surfaces(labels, spacing_mm):
        inner = ((index > reach) & (index < np.array(labels.shape) - 1 - reach)).all(axis=1)
        points += int(inner.sum())
        for number, offset in enumerate(offsets):
            sums[number] += _along(image, index[inner] + offset, normals[inner] / spacing_mm)
    beside = float(sums[1:].mean())
    return float(sums[0]) / beside if points >= _FEWEST_POINTS and beside > 0 and np.isfinite(sums).all() else None


def _surfaces(labels: NDArray[Any], spacing_mm: NDArray[np.float64]) -> Iterator[tuple[_Index, NDArray[np.float32]]]:
    """Of each structure: voxels (n × 3) where its blurred mask changes, and in what direction, by how much."""
    for value, box in find_boxes(labels).items():
        grown = tuple(slice(max(0, side.start - _MARGIN), side.stop + _MARGIN) for side in box)
        blurred = ndimage.gaussian_filter((labels[grown] == value).astype(np.float32), _BLUR_VOXELS, truncate=3.0)
        if min(blurred.shape) < 2:
            continue
        gradient = np.stack(np.gradient(blurred, *spacing_mm), axis=-1)
        index = np.argwhere(np.linalg.norm(gradient, axis=-1) > 0.05 / spacing_mm.max())
        index = index[:: max(1, len(index) // _SURFACE_POINTS)]
        yield index + np.array([side.start for side in grown]), gradient[tuple(index.T)]


def _along(image: NDArray[Any], index: _Index, normals: NDArray[Any]) -> float:
    """Sum over points (n × 3) of the absolute derivative of the image along a vector of each (n × 3, in 1/mm)."""
    derivative = np.zeros(len(index))
    for axis in range(3):
        step = np.eye(3, dtype=np.intp)[axis]
        after, before = image[tuple((index + step).T)], image[tuple((index - step).T)]
        derivative += (after.astype(np.float64) - before) / 2.0 * normals[:, axis]
    return float(np.abs(derivative).sum())
