"""Polygons to pixels, by one rule, exactly.

**Rule.** A pixel is inside a polygon if its centre is: if a ray from it crosses the outline an odd number of times
(even-odd). A channel that leads to a hole and back on the same line (a keyhole) has no width and changes nothing. Of
centres that lie on the outline itself those on the side of smaller indices are inside, those opposite are not, so that
two polygons that share an edge share no pixel. Coordinates are taken to a ten thousandth of a pixel, which keeps the
rounding of decimal numbers from deciding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DECIMALS: Final = 4
_CROSSINGS_AT_ONCE: Final = 1 << 21


class Patch(NamedTuple):
    """The inside of a polygon within the smallest box that holds it: index of the first row and column, and pixels."""

    row: int
    column: int
    inside: NDArray[np.bool_]

    @property
    def box(self) -> tuple[slice, slice]:
        """Where in the plane the pixels lie."""
        rows, columns = self.inside.shape
        return slice(self.row, self.row + rows), slice(self.column, self.column + columns)


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int]) -> Patch:
    """The pixels inside a closed polygon, as far as they are in the plane.

    Each edge toggles, in every row that it crosses, the pixels behind it; the running parity of the toggles is the
    inside. Edges are followed from the smaller row on, so that an edge and the same edge back cancel exactly.

    Parameters
    ----------
    points
        Corners (n × 2) as (row, column), in pixels; the last one is joined to the first.
    shape
        Rows and columns of the plane.
    """
    start = np.round(points, _DECIMALS)
    end = np.roll(start, -1, axis=0)
    upward = start[:, 0] <= end[:, 0]
    low, high = np.where(upward[:, None], start, end), np.where(upward[:, None], end, start)
    top, left = (max(int(np.ceil(value)), 0) for value in start.min(axis=0))
    bottom, right = (min(int(np.ceil(v)), n) for v, n in zip(start.max(axis=0), shape, strict=True))
    if top >= bottom or left >= right:
        return Patch(0, 0, np.zeros((0, 0), dtype=bool))
    # rows with low <= row < high, which for the last row of a polygon leaves its outline out
    first, last = (np.clip(np.ceil(edge[:, 0]), top, bottom).astype(np.intp) for edge in (low, high))
    width = right - left + 1
    toggles = np.zeros((bottom - top) * width, dtype=np.intp)
    for part in _parts(last - first):
        rows, crossing = _crossings(low[part], high[part], first[part], last[part])
        columns = np.clip(np.ceil(crossing), left, right).astype(np.intp) - left
        toggles += np.bincount((rows - top) * width + columns, minlength=len(toggles))
    inside = np.cumsum(toggles.reshape(-1, width), axis=1)[:, :-1] % 2 == 1
    return Patch(top, left, inside)


def _parts(counts: NDArray[np.intp]) -> Iterator[slice]:
    """Edges in parts of few crossings, so that an outline that runs to and fro fills no memory."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, done + _CROSSINGS_AT_ONCE, side="right")))
        yield slice(start, end)
        start = end


def _crossings(
    low: NDArray[np.float64], high: NDArray[np.float64], first: NDArray[np.intp], last: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows that edges cross, and the columns at which they do."""
    counts = last - first
    edges = np.repeat(np.arange(len(low)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    slope = (high[edges, 1] - low[edges, 1]) / (high[edges, 0] - low[edges, 0])
    return rows, np.round(low[edges, 1] + (rows - low[edges, 0]) * slope, _DECIMALS)


class Plane(NamedTuple):
    """What the polygons of one structure fill in one plane, and what was odd about them."""

    inside: NDArray[np.bool_]
    repeated: int  # polygons that fill the same pixels as another one, counted once
    crossing: int  # pixels left out though they are in two polygons of which neither lies in the other


def fill_plane(polygons: list[NDArray[np.float64]], shape: tuple[int, int]) -> Plane:
    """The pixels inside an odd number of polygons; a polygon that is listed twice counts once."""
    inside = np.zeros(shape, dtype=bool)
    taken: list[Patch] = []
    repeated = crossing = 0
    for points in polygons:
        patch = fill_polygon(points, shape)
        if not patch.inside.any():
            continue
        shared = [(_shared(patch, other), other) for other in taken]
        size = int(np.count_nonzero(patch.inside))
        sizes = [int(np.count_nonzero(other.inside)) for _, other in shared]
        if any(both == size == whole for (both, _), whole in zip(shared, sizes, strict=True)):
            repeated += 1
            continue
        crossing += sum(
            both for (both, _), whole in zip(shared, sizes, strict=True) if 0 < both < min(size, whole)
        )
        inside[patch.box] ^= patch.inside
        taken.append(patch)
    return Plane(inside, repeated, crossing)


def _shared(first: Patch, second: Patch) -> int:
    """Pixels in both."""
    top, left = max(first.row, second.row), max(first.column, second.column)
    bottom = min(patch.row + patch.inside.shape[0] for patch in (first, second))
    right = min(patch.column + patch.inside.shape[1] for patch in (first, second))
    if top >= bottom or left >= right:
        return 0
    parts = [
        patch.inside[top - patch.row : bottom - patch.row, left - patch.column : right - patch.column]
        for patch in (first, second)
    ]
    return int(np.count_nonzero(parts[0] & parts[1]))
