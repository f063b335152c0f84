"""Distances between two surfaces: computed once, every surface metric derives from them.

A surface is made of voxels that have a 6-neighbour outside the mask (beyond the array counts as outside), or of
elements: every cube between eight voxel centres that are not all inside or all outside holds the polygons that
marching cubes draws through the middles of the crossed edges (Lorensen and Cline, SIGGRAPH 1987); they count with their
area and lie at the centre of the cube (Nikolov et al., arXiv:1809.04430).

Distances are Euclidean, in mm. Three engines give the same result, each where it is cheapest: looking at the
neighbours in order of distance (most points of a good prediction), a k-d tree (few points left, or a sheared grid), and
the exact distance transform of ``edt`` (many points left; single precision, so right to about one part in ten million).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, product

import edt
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medseg.evaluation.definitions import PercentileRule

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]
Edge = frozenset[int]

_NEARBY_VOXELS = 2.5
"""Radius in voxels (of the mean size) that is searched by looking, before any structure is built."""

_TREE_COST_IN_VOXELS = 50
"""One query of a k-d tree for a far point costs as much as this many voxels cost the distance transform."""

_CORNERS = np.array(list(product((0, 1), repeat=3)))
"""Corner n of a cube; bit n of a code tells whether it is inside."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from the points of each surface to the other surface."""

    # one distance per point of the prediction's surface, to the nearest point of the reference's surface
    to_reference_mm: Distances
    to_prediction_mm: Distances  # one distance per point of the reference's surface
    # prediction_weights and reference_weights: area of each point's surface element in mm²; ``None`` if all points
    # weigh the same
    prediction_weights: Distances | None = None
    reference_weights: Distances | None = None

    def hausdorff_mm(self) -> float:
        """Largest distance of either direction."""
        return float(max(self.to_reference_mm.max(), self.to_prediction_mm.max()))

    def percentile_mm(self, percentile: float, rule: PercentileRule = "directed") -> float:
        """Percentile of the distances: per direction and the larger of both, or of both directions together."""
        forward, backward = self._directions()
        if rule == "pooled":
            weights = None if forward[1] is None else np.concatenate([forward[1], backward[1]])
            return _percentile(np.concatenate([forward[0], backward[0]]), weights, percentile)
        return max(_percentile(*forward, percentile), _percentile(*backward, percentile))

    def average_mm(self) -> float:
        """Average symmetric surface distance (ASSD): mean over the points of both surfaces together."""
        (total_p, size_p), (total_r, size_r) = (_total(*direction) for direction in self._directions())
        return (total_p + total_r) / (size_p + size_r)

    def mean_of_directions_mm(self) -> float:
        """Mean average surface distance (MASD): mean of the two directed averages."""
        (total_p, size_p), (total_r, size_r) = (_total(*direction) for direction in self._directions())
        return (total_p / size_p + total_r / size_r) / 2.0

    def share_within(self, tolerance_mm: float) -> float:
        """Normalised surface distance (NSD, surface Dice): share of both surfaces within ``tolerance_mm``."""
        within = size = 0.0
        for distances, weights in self._directions():
            near = distances <= tolerance_mm
            within += float(near.sum() if weights is None else weights[near].sum())
            size += float(distances.size if weights is None else weights.sum())
        return within / size

    def _directions(self) -> tuple[tuple[Distances, Distances | None], tuple[Distances, Distances | None]]:
        return (self.to_reference_mm, self.prediction_weights), (self.to_prediction_mm, self.reference_weights)


def measure_voxel_surfaces(prediction: Mask, reference: Mask, axes_mm: NDArray[np.float64]) -> SurfaceDistances:
    """Distances between the surface voxels of two masks that both have at least one voxel.

    ``prediction`` and ``reference``: Boolean arrays of one shape, axes (i, j, k). ``axes_mm``: 3×3; column a is the
    step in mm from a voxel to its neighbour along array axis a. Diagonal for an orthogonal grid.
    """
    surface_p, surface_r = surface_of(prediction), surface_of(reference)
    return SurfaceDistances(distances_mm(surface_p, surface_r, axes_mm), distances_mm(surface_r, surface_p, axes_mm))


def surface_of(mask: Mask) -> Mask:
    """Voxels of ``mask`` that have at least one of six neighbours outside it; beyond the array counts as outside."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        here, there = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        inner[tuple(here)] &= mask[tuple(there)]
        inner[tuple(there)] &= mask[tuple(here)]
        here[axis], there[axis] = slice(0, 1), slice(-1, None)
        inner[tuple(here)] = False
        inner[tuple(there)] = False
    return mask & ~inner


def distances_mm(points: Mask, target: Mask, axes_mm: NDArray[np.float64]) -> Distances:
    """Distance from every voxel of ``points`` to the nearest voxel of ``target``, in C order of the points."""
    # Points that both surfaces share have distance 0; on a good prediction that is most of them.
    indices = np.argwhere(points)
    found_mm = np.zeros(len(indices))
    apart = np.flatnonzero(~target[points])
    if len(apart):
        found_mm[apart], far = _nearby(indices[apart], target, axes_mm)
        if len(far):
            found_mm[apart[far]] = _anywhere(indices[apart[far]], target, axes_mm)
    return found_mm


def _nearby(points: NDArray[np.intp], target: Mask, axes_mm: NDArray[np.float64]) -> tuple[Distances, NDArray[np.intp]]:
    """Distances of the points that have a target close by, and which points have none.

    Looks at the neighbours in order of their distance, so the first hit is the nearest target.
    """
    offsets, lengths_mm = _neighbourhood(axes_mm)
    reach = np.abs(offsets).max(axis=0)
    padded = np.pad(target, [(int(r), int(r)) for r in reach])
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    places = (points + reach) @ strides
    flat, left = padded.ravel(), np.arange(len(points))
    found_mm = np.zeros(len(points))
    for step, length_mm in zip(offsets @ strides, lengths_mm, strict=True):
        hit = flat[places + step]
        found_mm[left[hit]] = length_mm
        places, left = places[~hit], left[~hit]
        if not len(left):
            break
    return found_mm, left


def _neighbourhood(axes_mm: NDArray[np.float64]) -> tuple[NDArray[np.intp], Distances]:
    """Every voxel offset within a few voxels' distance, nearest first, and its length in mm."""
    radius_mm = _NEARBY_VOXELS * abs(np.linalg.det(axes_mm)) ** (1 / 3)
    # A ball of that radius reaches this many voxels along each array axis, sheared or not.
    reach = np.floor(radius_mm * np.linalg.norm(np.linalg.inv(axes_mm), axis=1)).astype(np.intp)
    offsets = np.argwhere(np.ones(2 * reach + 1, dtype=bool)) - reach
    lengths_mm = np.linalg.norm(offsets @ axes_mm.T, axis=1)
    order = np.argsort(lengths_mm, kind="stable")
    order = order[(lengths_mm[order] > 0) & (lengths_mm[order] <= radius_mm)]
    return offsets[order], lengths_mm[order]


def _anywhere(points: NDArray[np.intp], target: Mask, axes_mm: NDArray[np.float64]) -> Distances:
    """Distance from each point (n × 3 indices) to the nearest target, however far."""
    orthogonal = np.count_nonzero(axes_mm - np.diag(np.diagonal(axes_mm))) == 0
    if orthogonal and len(points) * _TREE_COST_IN_VOXELS > target.size:
        spacing_mm = tuple(float(step) for step in np.abs(np.diagonal(axes_mm)))
        squared_mm2 = edt.edtsq(~target, anisotropy=spacing_mm)
        return np.sqrt(squared_mm2[tuple(points.T)].astype(np.float64))
    tree = cKDTree(np.argwhere(target) @ axes_mm.T, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points @ axes_mm.T)[0], dtype=np.float64)


def _percentile(distances: Distances, weights: Distances | None, percentile: float) -> float:
    if weights is None:
        return float(np.percentile(distances, percentile))
    order = np.argsort(distances)
    covered = np.cumsum(weights[order]) / weights.sum()
    place = min(int(np.searchsorted(covered, percentile / 100.0)), len(order) - 1)
    return float(distances[order[place]])


def _total(distances: Distances, weights: Distances | None) -> tuple[float, float]:
    if weights is None:
        return float(distances.sum()), float(distances.size)
    return float(distances @ weights), float(weights.sum())


def measure_surface_elements(prediction: Mask, reference: Mask, axes_mm: NDArray[np.float64]) -> SurfaceDistances:
    """Distances between the surface elements of two masks that both have at least one voxel.

    ``prediction`` and ``reference``: Boolean arrays of one shape, axes (i, j, k); beyond the array counts as outside.
    ``axes_mm``: 3×3; column a is the step in mm from a voxel to its neighbour along array axis a.
    """
    areas_mm2 = _areas_mm2(axes_mm.tobytes())
    codes_p, codes_r = _codes(prediction), _codes(reference)
    surface_p, surface_r = (areas_mm2[codes] > 0 for codes in (codes_p, codes_r))
    return SurfaceDistances(
        distances_mm(surface_p, surface_r, axes_mm),
        distances_mm(surface_r, surface_p, axes_mm),
        areas_mm2[codes_p[surface_p]],
        areas_mm2[codes_r[surface_r]],
    )


def _codes(mask: Mask) -> NDArray[np.uint8]:
    """For every cube between voxel centres (one more per axis than voxels): which of its corners are inside."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros(tuple(n + 1 for n in mask.shape), dtype=np.uint8)
    for bit, corner in enumerate(_CORNERS):
        codes |= padded[tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))] << bit
    return codes


@lru_cache(maxsize=8)
def _areas_mm2(axes_mm: bytes) -> NDArray[np.float64]:
    """The same for every structure of a case."""
    return element_areas_mm2(np.frombuffer(axes_mm, dtype=np.float64).reshape(3, 3))


def element_areas_mm2(axes_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the surface in a cube, for each of the 256 codes, in mm²."""
    areas = np.zeros(256)
    for code in range(1, 255):  # 0 has nothing inside, 255 everything
        areas[code] = sum(_polygon_area(loop @ axes_mm.T) for loop in _loops(code))
    return areas


def _polygon_area(points: NDArray[np.float64]) -> float:
    """Area of a closed polygon (n × 3), as a fan of triangles around its centre."""
    spokes = points - points.mean(axis=0)
    return float(np.linalg.norm(np.cross(spokes, np.roll(spokes, -1, axis=0)), axis=1).sum() / 2.0)


@cache
def _loops(code: int) -> tuple[NDArray[np.float64], ...]:
    """The surface in one cube as closed polygons; corners in units of voxels."""
    neighbours: dict[Edge, list[Edge]] = {}
    for one, other in _segments(code):
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    loops = []
    while neighbours:
        loop = [next(iter(neighbours))]
        while following := [edge for edge in neighbours[loop[-1]] if edge not in loop]:
            loop.append(following[0])
        for edge in loop:
            del neighbours[edge]
        loops.append(np.array([_CORNERS[sorted(edge)].mean(axis=0) for edge in loop]))
    return tuple(loops)


def _segments(code: int) -> list[tuple[Edge, Edge]]:
    """Where the surface cuts the six faces of a cube: pairs of crossed edges."""
    inside = {corner for corner in range(8) if code >> corner & 1}
    segments = []
    for edges in _faces():
        crossed = [edge for edge in edges if len(edge & inside) == 1]
        if len(crossed) == 2:
            segments.append((crossed[0], crossed[1]))
        elif len(crossed) == 4:
            # Two opposite corners are inside: cut off each of them, so that diagonal voxels stay apart.
            for corner in frozenset().union(*edges) & inside:
                one, other = (edge for edge in crossed if corner in edge)
                segments.append((one, other))
    return segments


@cache
def _faces() -> tuple[tuple[Edge, ...], ...]:
    """The four edges of each of the six faces; an edge is the pair of its corners."""
    edges = [frozenset(pair) for pair in combinations(range(8), 2) if (pair[0] ^ pair[1]).bit_count() == 1]
    planes = ({n for n in range(8) if _CORNERS[n][axis] == side} for axis in range(3) for side in (0, 1))
    return tuple(tuple(edge for edge in edges if edge <= plane) for plane in planes)
