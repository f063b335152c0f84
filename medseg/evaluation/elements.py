"""Surfaces made of elements that are weighted by their area, instead of voxels that all weigh the same.

Every cube between eight voxel centres that are not all inside or all outside holds a piece of the surface: the
polygons that marching cubes draws through the middles of the crossed edges (Lorensen and Cline, SIGGRAPH 1987).
The piece counts with its area in mm² and lies at the centre of its cube. That is the definition of Nikolov et al.
(arXiv:1809.04430), whose surface Dice weighs surfaces and not voxels.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.surfaces import Mask, SurfaceDistances, distances_mm

__all__ = ["element_areas_mm2", "measure_surface_elements"]

_CORNERS = np.array(list(product((0, 1), repeat=3)))
"""Corner n of a cube; bit n of a code tells whether it is inside."""

_WHOLE, _NOTHING = 255, 0

Edge = frozenset[int]


def measure_surface_elements(prediction: Mask, reference: Mask, axes_mm: NDArray[np.float64]) -> SurfaceDistances:
    """Distances between the surface elements of two masks that both have at least one voxel.

    Parameters
    ----------
    prediction, reference
        Boolean arrays of one shape, axes (i, j, k); beyond the array counts as outside.
    axes_mm
        3×3; column a is the step in mm from a voxel to its neighbour along array axis a.
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
    for code in range(_NOTHING + 1, _WHOLE):
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
