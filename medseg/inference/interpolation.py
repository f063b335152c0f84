"""Labels on a finer grid by linear interpolation of scores, computed only for the classes that can win; and back.

Between voxels every interpolated score lies between the scores at the corners. In a tile where the largest score of one
class is below the smallest of another it cannot win, and where one class is left its label is known without
interpolation. Over most of a body that is so, whatever the number of classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from monai.data import MetaTensor

_TILE = 64
_ROUNDING = 1e-4


class Lerp:
    """Linear interpolation at positions, in voxels within ``0`` and ``size - 1``, along an axis of length ``size``."""

    def __init__(self, position: NDArray[np.float64], size: int) -> None:
        lower = np.clip(np.floor(position), 0, max(size - 2, 0)).astype(np.int64)
        self.identity = bool(len(position) == size and np.array_equal(position, np.arange(size)))
        self.lower = torch.from_numpy(lower)
        self.upper = torch.from_numpy(np.minimum(lower + 1, size - 1))
        self.weight = torch.from_numpy((position - lower).astype(np.float32))
        self.exact = bool((self.weight == 0).all())

    def __call__(self, scores: torch.Tensor, axis: int) -> torch.Tensor:
        """Interpolate ``scores`` along ``axis``."""
        if self.identity:
            return scores
        low = scores.index_select(axis, self.lower)
        if self.exact:
            return low
        shape = [1] * scores.ndim
        shape[axis] = -1
        return low.lerp_(scores.index_select(axis, self.upper), self.weight.reshape(shape))


_Strip = tuple[slice, slice, Lerp]
"""Part of an axis: positions on the finer grid, the voxels of the coarser one that they lie between, the way there."""


class TiledLabels:
    """Labels of planes whose two axes are interpolated, at positions on the coarser grid, whose planes have ``shape``.

    If scores are ``normalised``, each voxel's add up to one: then a class below one part in as many as there are
    classes cannot win.
    """

    def __init__(
        self, rows: NDArray[np.float64], columns: NDArray[np.float64], shape: tuple[int, int], *, normalised: bool
    ) -> None:
        self._whole = (Lerp(rows, shape[0]), Lerp(columns, shape[1]))
        self._rows, self._columns = list(_strips(rows)), list(_strips(columns))
        self._shape = (len(rows), len(columns))
        self._normalised = normalised

    def __call__(self, scores: torch.Tensor) -> NDArray[np.int64]:
        """Labels ``(P, rows, columns)`` of scores ``(K, P, W, D)``: the class with the largest interpolated score."""
        if all(along.identity for along in self._whole):
            return np.asarray(scores.max(dim=0)[1].numpy())
        labels = np.empty((scores.shape[1], *self._shape), dtype=np.int64)
        for row, coarse_row, along_row in self._rows:
            strip = scores[:, :, coarse_row]
            lowest, highest = strip.amin(dim=(1, 2)), strip.amax(dim=(1, 2))
            for column, coarse, along_column in self._columns:
                chosen = self._contenders(lowest[:, coarse], highest[:, coarse])
                place = (slice(None), row, column)
                if len(chosen) == 1:
                    labels[place] = int(chosen[0])
                    continue
                winner = along_column(along_row(strip[chosen][..., coarse], 2), 3).max(dim=0)[1]
                labels[place] = chosen[winner].numpy()
        return labels

    def _contenders(self, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
        """Classes that can have the largest score somewhere in a tile."""
        least = float(lowest.amin(dim=1).max())
        if self._normalised:
            least = max(least, 1.0 / lowest.shape[0])
        return (highest.amax(dim=1) >= least - _ROUNDING * abs(least)).nonzero()[:, 0]


def _strips(position: NDArray[np.float64]) -> Iterator[_Strip]:
    for begin in range(0, len(position), _TILE):
        part = position[begin : begin + _TILE]
        low, high = int(np.floor(part.min())), int(np.ceil(part.max())) + 1
        yield slice(begin, begin + len(part)), slice(low, high), Lerp(part - low, high - low)


def nearest_labels(labels: NDArray[np.integer[Any]], source: MetaTensor, prepared: MetaTensor) -> NDArray[np.uint8]:
    """Labels ``(H, W, D)`` of the source image on the network's grid: the nearest voxel's, background outside."""
    from scipy.ndimage import affine_transform

    affines = [np.asarray(image.affine, dtype=np.float64) for image in (source, prepared)]
    matrix = np.linalg.solve(affines[0], affines[1])
    shape = tuple(prepared.shape[1:])
    # "constant" would take a voxel that lies a rounding error outside for background, "grid-constant" does not
    moved = affine_transform(labels, matrix, output_shape=shape, order=0, mode="grid-constant", cval=0)
    return np.asarray(moved, dtype=np.uint8)
