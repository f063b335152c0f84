"""What the network said of the structures and their surroundings, kept in bounded memory while slabs pass by.

Trust judges probabilities, and those of a whole volume are classes × voxels. Nearly all of them say "background,
surely". Only voxels where the other classes together get more than a thousandth are kept, in half precision; the
rest is background when the box round the structures is put together again. What is kept does not depend on how the
volume was cut into windows and slabs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.inference.sliding_window import Chunk
from medseg.labels.decoding import LabelDecoding

MARGIN_VOXELS = 16
"""Surroundings of the structures that are judged with them."""

LIMIT_BYTES = 1 << 30
"""Memory for what is kept, and for the box put together again; above it a case is not judged."""

_LEAST = 1e-3


@dataclass(frozen=True)
class Crop:
    """The box round everything that was found; the whole volume if nothing was.

    Parameters
    ----------
    probabilities
        ``(K, h, w, d)`` float32 with the background first, on the network's grid.
    start
        The box's first voxel on that grid.
    """

    probabilities: torch.Tensor
    start: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box, as indices on the network's grid."""
        i, j, k = (slice(a, a + n) for a, n in zip(self.start, self.probabilities.shape[1:], strict=True))
        return i, j, k


class ProbabilityCrop:
    """Called with every slab of one volume; :meth:`crop` then gives the box round the structures.

    Parameters
    ----------
    decoding
        Says how scores become probabilities and labels.
    limit_bytes
        Most memory that may be kept.
    """

    def __init__(self, decoding: LabelDecoding, limit_bytes: int = LIMIT_BYTES) -> None:
        self._decoding, self._limit = decoding, limit_bytes
        self._pieces: list[tuple[NDArray[np.int32], torch.Tensor]] = []
        self._kept_bytes = 0
        self._low = np.full(3, np.iinfo(np.int64).max)
        self._high = np.full(3, -1)
        self._classes = 0

    def __call__(self, slab: Chunk) -> None:
        """Keep what matters of a slab."""
        scores = _two_sided(slab.scores, self._decoding)
        self._classes = scores.shape[0]
        if self._kept_bytes > self._limit:
            return
        where, probabilities = _uncertain(scores, _normalised(self._decoding, slab.scores))
        index = where.to(torch.int32).numpy() + np.array([slab.start, 0, 0], dtype=np.int32)
        self._pieces.append((index, probabilities.half()))
        self._kept_bytes += index.nbytes + probabilities.numel() * 2
        found = index[_found(probabilities, self._decoding)]
        if len(found):
            self._low = np.minimum(self._low, found.min(axis=0))
            self._high = np.maximum(self._high, found.max(axis=0))
        if self._kept_bytes > self._limit:
            self._pieces.clear()

    def crop(self, shape: Sequence[int], include: NDArray[np.bool_] | None = None) -> Crop | None:
        """The box round the structures with a margin; None if it takes more memory than allowed.

        Parameters
        ----------
        shape
            Size of the network's grid.
        include
            Voxels ``(H, W, D)`` that must lie in the box too, such as a reference's.
        """
        low, high = np.zeros(3, dtype=np.int64), np.asarray(shape, dtype=np.int64)
        if (self._high >= 0).all():
            low = np.maximum(self._low - MARGIN_VOXELS, 0)
            high = np.minimum(self._high + 1 + MARGIN_VOXELS, high)
            if include is not None and include.any():
                planes = [np.flatnonzero(include.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
                low = np.minimum(low, [where[0] for where in planes])
                high = np.maximum(high, [where[-1] + 1 for where in planes])
        size = [int(n) for n in high - low]
        if self._kept_bytes > self._limit or self._classes * math.prod(size) * 4 > self._limit:
            return None
        box = torch.zeros(self._classes, *size)
        for index, values in self._pieces:
            inside = ((index >= low) & (index < high)).all(axis=1)
            i, j, k = torch.from_numpy((index[inside] - low).astype(np.int64)).unbind(1)
            box[1:, i, j, k] = values[:, torch.from_numpy(inside)].float()
        total = box[1:].sum(dim=0)
        box[1:] /= total.clamp(min=1.0)  # half precision may add up to a little more than 1
        box[0] = (1.0 - total).clamp_(min=0.0)
        return Crop(box, (int(low[0]), int(low[1]), int(low[2])))


def _two_sided(scores: torch.Tensor, decoding: LabelDecoding) -> torch.Tensor:
    """Scores ``(K, ...)`` with the background first, also of a network with one channel."""
    if scores.shape[0] > 1:
        return scores
    if decoding.activation == "softmax":
        return torch.cat([torch.zeros_like(scores), scores])
    return torch.cat([-scores, scores]) / 2  # the softmax of ∓x/2 is the sigmoid of x


def _normalised(decoding: LabelDecoding, scores: torch.Tensor) -> bool:
    """Whether the network itself ends in a softmax, so that its scores are probabilities already."""
    if decoding.activation != "none" or scores.shape[0] == 1 or bool(scores.min() < 0):
        return False
    return bool(((scores.sum(dim=0) - 1.0).abs() < 1e-3).all())


def _uncertain(scores: torch.Tensor, normalised: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the structures get more than a thousandth ``(n, 3)``, and what each of them gets ``(K - 1, n)``."""
    if normalised:
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


def _found(probabilities: torch.Tensor, decoding: LabelDecoding) -> NDArray[np.bool_]:
    """Which of the kept voxels are labelled as a structure on the network's grid."""
    if decoding.threshold is not None and decoding.activation == "sigmoid":
        found = probabilities[0] >= decoding.threshold
    else:
        found = probabilities.amax(dim=0) > 1.0 - probabilities.sum(dim=0)
    return np.asarray(found.numpy(), dtype=np.bool_)
