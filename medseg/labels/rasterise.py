"""Polygons to pixels, by one rule, exactly.

**Rule.** A pixel belongs to a structure if its centre is inside an odd number of the structure's polygons in that plane
(even-odd within one polygon, exclusive or among several), or lies on an outline, be it that of a hole. A line that is
walked there and back, as the channel of a keyhole to its hole, has no width and is no outline. Coordinates are taken to
a ten thousandth of a pixel, so that the rounding of decimal numbers does not decide.

scikit-image's ``grid_points_in_poly`` knows centres on outlines, but calls the channel of a keyhole one too, tests them
without any tolerance, and takes all pixels times all corners: 0.27 s for 400 corners in 512 × 512, this 0.002 s. Its
``polygon2mask`` is as exact and as slow; Pillow's polygons take pixels that the outline touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DECIMALS: Final = 4
_MOST_OF_IT: Final = 0.9
_CROSSINGS_AT_ONCE: Final = 1 << 21


class Patch(NamedTuple):
    """A polygon within the smallest box that holds it: index of the first row and column, and pixels."""

    row: int
    column: int
    inside: NDArray[np.bool_]  # by crossings alone, which give centres on the outline to either side
    outline: NDArray[np.bool_]  # centres that lie on it

    @property
    def box(self) -> tuple[slice, slice]:
        """Where in the plane the pixels lie."""
        rows, columns = self.inside.shape
        return slice(self.row, self.row + rows), slice(self.column, self.column + columns)


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int]) -> Patch:
    """The pixels of a closed polygon, as far as they are in the plane.

    Each edge toggles, in every row that it crosses, the pixels behind it; the running parity of the toggles is the
    inside. Edges are followed from the smaller row on, so that an edge and the same edge back cancel exactly.

    ``points``: corners (n × 2) as (row, column), in pixels; the last one is joined to the first. ``shape``: rows and
    columns of the plane.
    """
    start = np.round(points, _DECIMALS)
    end = np.roll(start, -1, axis=0)
    top, left = (max(int(np.ceil(value)), 0) for value in start.min(axis=0))
    bottom, right = (min(int(np.floor(v)) + 1, n) for v, n in zip(start.max(axis=0), shape, strict=True))
    if top >= bottom or left >= right:
        return Patch(0, 0, *np.zeros((2, 0, 0), dtype=bool))
    swapped = (start[:, 0] > end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] > end[:, 1]))
    low, high = np.where(swapped[:, None], end, start), np.where(swapped[:, None], start, end)
    origin = np.array([top, left])
    size = (bottom - top, right - left)
    inside, touches = _toggled(low - origin, high - origin, size)
    outline = np.zeros(size, dtype=bool)
    if touches:
        edges, counts = np.unique(np.hstack([low, high]), axis=0, return_counts=True)
        once = edges[counts % 2 == 1]
        _mark(outline, once[:, :2] - origin, once[:, 2:] - origin)
    return Patch(top, left, inside, outline)


def _toggled(
    low: NDArray[np.float64], high: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], bool]:
    """Parity of the crossings to the left of each pixel, and whether any centre lies on an edge."""
    first, last = (np.clip(np.ceil(edge[:, 0]), 0, size[0]).astype(np.intp) for edge in (low, high))
    width = size[1] + 1
    toggles = np.zeros(size[0] * width, dtype=np.intp)
    touches = bool(((low == np.rint(low)).all(axis=1)).any() or (low[:, 0] == high[:, 0]).any())
    for part in _parts(last - first):  # rows with low <= row < high: a corner between two edges counts once
        rows, crossing = _crossings(low[part], high[part], first[part], last[part])
        touches = touches or bool((crossing == np.rint(crossing)).any())
        columns = np.clip(np.ceil(crossing), 0, size[1]).astype(np.intp)
        toggles += np.bincount(rows * width + columns, minlength=len(toggles))
    return np.cumsum(toggles.reshape(-1, width), axis=1)[:, :-1] % 2 == 1, touches


def _mark(outline: NDArray[np.bool_], low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    """Mark the centres that lie on edges."""
    rows, columns = outline.shape
    flat = low[:, 0] == high[:, 0]
    for start, end in zip(low[flat], high[flat], strict=True):
        if start[0] == np.rint(start[0]) and 0 <= start[0] < rows:
            outline[int(start[0]), max(int(np.ceil(start[1])), 0) : max(int(np.floor(end[1])) + 1, 0)] = True
    low, high = low[~flat], high[~flat]
    first = np.clip(np.ceil(low[:, 0]), 0, rows).astype(np.intp)
    last = np.clip(np.floor(high[:, 0]) + 1, 0, rows).astype(np.intp)
    for part in _parts(last - first):
        row, crossing = _crossings(low[part], high[part], first[part], last[part])
        on = (crossing == np.rint(crossing)) & (crossing >= 0) & (crossing < columns)
        outline[row[on], crossing[on].astype(np.intp)] = True


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
    is_thin: bool = False  # a polygon takes nine tenths out of the one around it: a hole, or it was drawn twice


def fill_plane(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> Plane:
    """The pixels of several polygons (as :func:`fill_polygon` takes them); one that is listed twice counts once."""
    inside, outline, covered = np.zeros((3, *shape), dtype=bool)
    taken: list[tuple[Patch, int]] = []
    repeated = crossing = 0
    is_thin = False
    for points in polygons:
        patch = fill_polygon(points, shape)
        size = int(np.count_nonzero(patch.inside))
        # islands, of which a slice may have hundreds, are in no other polygon, and need not be held against each
        overlaps = bool((covered[patch.box] & patch.inside).any())
        shared = [(_shared(patch, other), whole) for other, whole in taken] if overlaps else []
        if size and any(both == size == whole for both, whole in shared):
            repeated += 1
            continue
        is_thin |= any(both == min(size, whole) >= _MOST_OF_IT * max(size, whole) for both, whole in shared if both)
        crossing += sum(both for both, whole in shared if 0 < both < min(size, whole))
        inside[patch.box] ^= patch.inside
        outline[patch.box] |= patch.outline
        covered[patch.box] |= patch.inside
        if size:
            taken.append((patch, size))
    return Plane(inside | outline, repeated, crossing, is_thin)


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
