"""The box that is assessed: everything that was found with its surroundings, in fitting as in use.

Trust needs probabilities, and those of a whole volume are classes × voxels. Nearly all of them say "background,
surely". While a volume passes by in chunks, only voxels where the other classes together get more than a thousandth
are kept, in half precision; the rest is background when the box is put together again. What is kept does not depend on
how the volume was cut into windows and chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import UsageError
from medseg.labels.decoding import LabelDecoding

MARGIN_VOXELS = 16
"""Surroundings that are assessed with the structures."""

LIMIT_BYTES = 1 << 30
"""Memory for what is kept, and for the box put together again; above it a case is not assessed."""

_LARGEST_BOX = 1 << 23
_REINFERENCE_MARGIN, _REINFERENCE_SIDE = 4, (20, 64)
_LEAST = 1e-3

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Crop:
    """A box of one case on the network's grid.

    Raises ``UsageError`` if the shapes do not fit together.
    """

    image: Tensor  # ``(C, H, W, D)`` as the network saw it
    probabilities: Tensor  # ``(K, H, W, D)`` in that box, background first, adding up to one
    start: tuple[int, int, int] = (0, 0, 0)  # the box's first voxel on the network's grid
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    """From voxels of the network's grid to RAS, mm."""

    def __post_init__(self) -> None:
        image, probabilities = tuple(self.image.shape), tuple(self.probabilities.shape)
        if len(image) != 4 or len(probabilities) != 4 or image[1:] != probabilities[1:]:
            found = f"found an image of shape {image} and probabilities of shape {probabilities}"
            raise UsageError(f"{found}, expected (C, H, W, D) and (K, H, W, D) on one grid")

    @property
    def slices(self) -> Slices:
        """The box, as indices on the network's grid."""
        i, j, k = (slice(a, a + n) for a, n in zip(self.start, self.image.shape[1:], strict=True))
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the three axes."""
        return spacing_mm_of(self.affine)


def spacing_mm_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size along the three axes of a grid."""
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(x), float(y), float(z)


def most_probable(probabilities: Tensor) -> Tensor:
    """The most probable class ``(H, W, D)`` of probabilities ``(K, H, W, D)``."""
    return probabilities.max(0)[1]


def structure_box(labels: Tensor, margin: int = MARGIN_VOXELS) -> Slices:
    """Box round all structures of a label map ``(H, W, D)`` with a margin, the whole grid if there are none.

    Of a box of more than 2²³ voxels the ends of the longest axes are left out.
    """
    shape = labels.shape
    low, high = [0, 0, 0], list(shape)
    mask = labels > 0
    if bool(mask.any()):
        for axis in range(3):
            first, second = (a for a in range(3) if a != axis)
            planes = torch.nonzero(mask.any(second).any(first)).flatten()
            low[axis] = max(int(planes[0]) - margin, 0)
            high[axis] = min(int(planes[-1]) + 1 + margin, shape[axis])
    size = _trimmed([b - a for a, b in zip(low, high, strict=True)])
    starts = [a + (b - a - n) // 2 for a, b, n in zip(low, high, size, strict=True)]
    i, j, k = (slice(a, a + n) for a, n in zip(starts, size, strict=True))
    return i, j, k


def reinference_box(labels: Tensor) -> Slices:
    """The smaller box that the network labels once more: 4 voxels of margin, 20 to 64 voxels a side if there are."""
    shortest, longest = _REINFERENCE_SIDE

    def fitted(side: slice, extent: int) -> slice:
        length = min(max(side.stop - side.start, shortest), longest, extent)
        start = min(max((side.start + side.stop - length) // 2, 0), extent - length)
        return slice(start, start + length)

    i, j, k = map(fitted, structure_box(labels, margin=_REINFERENCE_MARGIN), labels.shape)
    return i, j, k


def _trimmed(size: Sequence[int]) -> list[int]:
    """Sides cut to a common longest length, so that not too many voxels are left."""
    low, high = 1, max(size)
    while low < high:
        middle = (low + high + 1) // 2
        fits = math.prod(min(n, middle) for n in size) <= _LARGEST_BOX
        low, high = (middle, high) if fits else (low, middle - 1)
    return [min(n, low) for n in size]


class ProbabilityCrop:
    """Takes the chunks of one volume; :meth:`crop` then gives the box round the structures.

    ``decoding`` says how scores become probabilities and labels.
    """

    def __init__(self, decoding: LabelDecoding) -> None:
        self._decoding = decoding
        self._pieces: list[tuple[NDArray[np.int32], Tensor]] = []
        self._kept_bytes = 0
        self._low = np.full(3, np.iinfo(np.int64).max)
        self._high = np.full(3, -1)
        self._classes = 0

    def add(self, start: int, scores: Tensor) -> None:
        """Keep what matters of a chunk ``(K, h, W, D)`` whose first plane is ``start`` on the network's grid."""
        both = with_background(scores, self._decoding)
        self._classes = both.shape[0]
        if self._kept_bytes > LIMIT_BYTES:
            return
        where, probabilities = _uncertain(both, are_probabilities(self._decoding, scores))
        index = where.to(torch.int32).numpy() + np.array([start, 0, 0], dtype=np.int32)
        self._pieces.append((index, probabilities.half()))
        self._kept_bytes += index.nbytes + probabilities.numel() * 2
        labelled = index[_labelled(probabilities, self._decoding)]
        if len(labelled):
            self._low = np.minimum(self._low, labelled.min(axis=0))
            self._high = np.maximum(self._high, labelled.max(axis=0))
        if self._kept_bytes > LIMIT_BYTES:
            self._pieces.clear()

    def crop(self, image: Tensor, affine: NDArray[np.float64], include: NDArray[np.bool_] | None = None) -> Crop | None:
        """The box round the structures with a margin, the whole volume if nothing was found.

        ``image`` and ``affine``: The whole volume as the network saw it ``(C, H, W, D)``, and its grid. ``include``:
        Voxels ``(H, W, D)`` that must lie in the box too, such as a reference's. None if it takes more memory than
        allowed.
        """
        low, high = self._extent(image.shape[1:], include)
        size = [int(n) for n in high - low]
        if self._kept_bytes > LIMIT_BYTES or self._classes * math.prod(size) * 4 > LIMIT_BYTES:
            return None
        box = torch.zeros(self._classes, *size)
        for index, values in self._pieces:
            inside = ((index >= low) & (index < high)).all(axis=1)
            i, j, k = torch.from_numpy((index[inside] - low).astype(np.int64)).unbind(1)
            box[1:, i, j, k] = values[:, torch.from_numpy(inside)].float()
        with_rest_as_background(box)
        i0, j0, k0 = (int(n) for n in low)
        seen = image[:, i0 : int(high[0]), j0 : int(high[1]), k0 : int(high[2])].float()
        return Crop(seen, box, (i0, j0, k0), np.asarray(affine, dtype=np.float64))

    def _extent(
        self, shape: Sequence[int], include: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        low, high = np.zeros(3, dtype=np.int64), np.asarray(shape, dtype=np.int64)
        if (self._high >= 0).all():
            low = np.maximum(self._low - MARGIN_VOXELS, 0)
            high = np.minimum(self._high + 1 + MARGIN_VOXELS, high)
            if include is not None and include.any():
                planes = [np.flatnonzero(include.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
                low = np.minimum(low, [where[0] for where in planes])
                high = np.maximum(high, [where[-1] + 1 for where in planes])
        return low, high


def with_rest_as_background(probabilities: Tensor) -> None:
    """Fill channel 0 of ``(K, H, W, D)`` in place; half precision may add up to a little more than 1."""
    total = probabilities[1:].sum(dim=0)
    probabilities[1:] /= total.clamp(min=1.0)
    probabilities[0] = (1.0 - total).clamp_(min=0.0)


def with_background(scores: Tensor, decoding: LabelDecoding) -> Tensor:
    """Scores ``(K, ...)`` with the background first, also of a network with one channel."""
    if scores.shape[0] > 1:
        return scores
    if decoding.activation == "softmax":
        return torch.cat([torch.zeros_like(scores), scores])
    return torch.cat([-scores, scores]) / 2  # the softmax of ∓x/2 is the sigmoid of x


def are_probabilities(decoding: LabelDecoding, scores: Tensor) -> bool:
    """Whether the network itself ends in a softmax, so that its scores are probabilities already."""
    if decoding.activation != "none" or scores.shape[0] == 1 or bool(scores.min() < 0):
        return False
    return bool(((scores.sum(dim=0) - 1.0).abs() < 1e-3).all())


def _uncertain(scores: Tensor, are_probabilities: bool) -> tuple[Tensor, Tensor]:
    """Where the structures get more than a thousandth ``(n, 3)``, and what each of them gets ``(K - 1, n)``."""
    if are_probabilities:
        where = (scores[1:].sum(dim=0) > _LEAST).nonzero()
        i, j, k = where.unbind(1)
        return where, scores[1:, i, j, k]
    # every class below this share adds up to less than the least probability: a bound without exponentials
    ahead = scores[1:].amax(dim=0) - scores[0]
    where = (ahead > math.log(_LEAST / max(scores.shape[0] - 1, 1))).nonzero()
    i, j, k = where.unbind(1)
    probabilities = torch.softmax(scores[:, i, j, k], dim=0)[1:]
    enough = probabilities.sum(dim=0) > _LEAST
    return where[enough], probabilities[:, enough]


def _labelled(probabilities: Tensor, decoding: LabelDecoding) -> NDArray[np.bool_]:
    """Which of the kept voxels are labelled as a structure on the network's grid."""
    if decoding.threshold is not None and decoding.activation == "sigmoid":
        labelled = probabilities[0] >= decoding.threshold
    else:
        labelled = probabilities.amax(dim=0) > 1.0 - probabilities.sum(dim=0)
    return np.asarray(labelled.numpy(), dtype=np.bool_)
