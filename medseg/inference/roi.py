"""A region of interest in patient space: crop a volume to it, paste the result back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal, UsageError
from medseg.files import sha256_file
from medseg.geometry import Geometry
from medseg.ingest import read_volume

if TYPE_CHECKING:
    from monai.data import MetaTensor

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class IndexBox:
    """A box of voxels on one grid: ``low`` inclusive, ``high`` exclusive."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in an array with axes ``(i, j, k)``."""
        a, b, c = (slice(first, last) for first, last in zip(self.low, self.high, strict=True))
        return a, b, c

    def crop(self, image: MetaTensor) -> MetaTensor:
        """The part of an image ``(C, H, W, D)`` in the box, at its place in patient space."""
        affine = np.asarray(image.affine, dtype=np.float64).copy()
        affine[:3, 3] = affine[:3, :3] @ np.asarray(self.low, dtype=np.float64) + affine[:3, 3]
        return type(image)(image.as_tensor()[(slice(None), *self.slices)], affine=affine)

    def paste(self, part: NDArray[_T], shape: tuple[int, ...]) -> NDArray[_T]:
        """The whole grid of a part that lies in the box, with zeros around it."""
        whole = np.zeros(shape, dtype=part.dtype)
        whole[self.slices] = part
        return whole


@dataclass(frozen=True)
class Region:
    """Where to look: in the box that holds the ``corners``.

    These are ``(n, 3)`` points in mm in patient space (RAS), or, ``in_voxels``, indices of each image's own grid. The
    ``key`` identifies the region, for the run's state.
    """

    corners: tuple[tuple[float, float, float], ...]
    in_voxels: bool
    key: str

    def box(self, geometry: Geometry) -> IndexBox:
        """Smallest box of voxels of a grid that holds the region, cut off at the grid's edge.

        A region that lies outside the volume is refused as ``geometry-mismatch``.
        """
        points = np.asarray(self.corners, dtype=np.float64)
        if not self.in_voxels:
            inverse = np.linalg.inv(geometry.affine)
            points = points @ inverse[:3, :3].T + inverse[:3, 3]
        low = np.clip(np.round(points.min(axis=0), 6), 0, None)
        high = np.minimum(np.round(points.max(axis=0), 6), np.asarray(geometry.shape) - 1)
        first, last = np.ceil(low).astype(int), np.floor(high).astype(int) + 1
        if (last <= first).any():
            raise Refusal(
                "geometry-mismatch",
                f"the region of interest lies outside the volume ({geometry.describe()}); check --roi",
            )
        return IndexBox(tuple(first.tolist()), tuple(last.tolist()))


def parse_region(text: str) -> Region:
    """Read the value of ``--roi``.

    Six numbers ``x0,y0,z0,x1,y1,z1`` are two opposite corners in mm, RAS+; with ``voxels:`` in front they are voxel
    indices, both ends included. Anything else is a mask image: the box around its voxels that are not zero.

    Raises ``UsageError`` if it is none of these, or the mask is empty.
    """
    in_voxels = text.startswith("voxels:")
    numbers = [part for part in re.split(r"[,\s]+", text.removeprefix("voxels:").strip()) if part]
    if _all_numbers(numbers):
        if len(numbers) != 6:
            raise UsageError(f"--roi {text}: found {len(numbers)} numbers, expected six (x0,y0,z0,x1,y1,z1)")
        values = [float(number) for number in numbers]
        corners = tuple(product(*zip(values[:3], values[3:], strict=True)))
        return Region(corners, in_voxels, text)  # type: ignore[arg-type]
    if not Path(text).exists():
        raise UsageError(f"--roi {text}: neither six numbers (x0,y0,z0,x1,y1,z1) nor a mask image that exists")
    return _region_of_mask(Path(text))


def _region_of_mask(path: Path) -> Region:
    array, geometry, _ = read_volume(path)
    found = np.argwhere(array != 0)
    if not len(found):
        raise UsageError(f"--roi {path}: the mask is empty; draw the region of interest in it")
    ends = np.stack([found.min(axis=0) - 0.5, found.max(axis=0) + 0.5])
    points = np.array(list(product(*ends.T))) @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return Region(tuple(map(tuple, points.tolist())), False, sha256_file(path))


def _all_numbers(parts: list[str]) -> bool:
    try:
        return bool(parts) and all(np.isfinite(float(part)) for part in parts)
    except ValueError:
        return False
