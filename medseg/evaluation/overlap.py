"""Metrics of voxels and of lesions: where each label lies, counts first, ratios from the counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


def find_boxes(label_map: NDArray[np.integer]) -> dict[int, Box]:
    """A box around every label but 0.

    Volumes are mostly background: eight bytes of it are recognised at once, and only the remaining words are looked at
    in detail. The boxes are therefore right to a machine word: up to seven voxels larger than needed along the last
    axis, and over its whole length where a word runs on into the next row. ``label_map``: C-contiguous integers, axes
    (i, j, k).
    """
    words, values = _occupied_words(label_map)
    if not len(words):
        return {}
    lanes = values.shape[1]
    n_j, n_k = label_map.shape[1:]
    first = words * lanes
    last = np.minimum(first + lanes, label_map.size) - 1
    low_row, high_row = first // n_k, last // n_k
    same_row = low_row == high_row
    lows = [low_row // n_j, low_row % n_j, np.where(same_row, first - low_row * n_k, 0)]
    highs = [high_row // n_j, high_row % n_j, np.where(same_row, last - high_row * n_k, n_k - 1)]
    same_plane = lows[0] == highs[0]
    lows[1], highs[1] = np.where(same_plane, lows[1], 0), np.where(same_plane, highs[1], n_j - 1)
    boxes = {}
    for label in _values_in(values):
        # One comparison per word instead of a reduction over its lanes.
        here = np.flatnonzero((values == label).view(f"u{lanes}"))
        i, j, k = (
            slice(int(low[here].min()), int(high[here].max()) + 1) for low, high in zip(lows, highs, strict=True)
        )
        boxes[label] = (i, j, k)
    return boxes


def _occupied_words(label_map: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.integer]]:
    """Indices of the eight-byte words that are not all background, and their values (words × voxels in a word)."""
    flat = label_map.ravel()
    lanes = 8 // flat.itemsize
    n_words = flat.size // lanes
    whole = flat[: n_words * lanes]
    words = np.flatnonzero(whole.view(np.uint64))
    values = whole.reshape(-1, lanes)[words]
    rest = flat[n_words * lanes :]
    if rest.any():
        tail = np.zeros((1, lanes), dtype=flat.dtype)
        tail[0, : len(rest)] = rest
        words, values = np.append(words, n_words), np.concatenate([values, tail])
    return words, values


def _values_in(values: NDArray[np.integer]) -> list[int]:
    """The distinct values but 0, ascending."""
    if values.dtype.itemsize <= 2:
        seen = np.zeros(int(values.max()) + 1, dtype=bool)
        seen[values] = True
        return [int(value) for value in np.flatnonzero(seen) if value]
    return [int(value) for value in np.unique(values) if value]


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels of prediction and reference: in both, in the prediction, in the reference, in the image."""

    both: int
    prediction: int
    reference: int
    image: int

    @property
    def dice(self) -> float:
        """2·|P∩R| / (|P|+|R|)."""
        return 2.0 * self.both / (self.prediction + self.reference)

    @property
    def iou(self) -> float:
        """|P∩R| / |P∪R|."""
        return self.both / (self.prediction + self.reference - self.both)

    @property
    def precision(self) -> float:
        """|P∩R| / |P|, or 0 if the prediction is empty."""
        return self.both / self.prediction if self.prediction else 0.0

    @property
    def recall(self) -> float:
        """|P∩R| / |R|, or 0 if the reference is empty."""
        return self.both / self.reference if self.reference else 0.0

    @property
    def specificity(self) -> float | None:
        """Share of the voxels outside R that are outside P; ``None`` if R fills the image."""
        outside = self.image - self.reference
        return (outside - (self.prediction - self.both)) / outside if outside else None


def centreline_dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Harmonic mean of the share of each mask's skeleton that lies in the other; both hold a voxel (axes i, j, k).

    Source: Shit et al., *clDice: a novel topology-preserving loss function for tubular structure segmentation*, CVPR
    2021; the skeleton is that of Lee et al., CVGIP 56 (1994), from scikit-image.
    """
    from skimage.morphology import skeletonize

    # the outermost voxels have no neighbours to tell the skeleton what is outside
    skeleton: Callable[[NDArray[np.bool_]], NDArray[np.bool_]] = skeletonize
    ours, theirs = (skeleton(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] > 0 for mask in (prediction, reference))
    precision = int(np.count_nonzero(ours & reference)) / max(int(np.count_nonzero(ours)), 1)
    sensitivity = int(np.count_nonzero(theirs & prediction)) / max(int(np.count_nonzero(theirs)), 1)
    return 2.0 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


@dataclass(frozen=True)
class LesionScores:
    """How many connected components were found, and how many were made up."""

    predicted: int
    predicted_right: int
    reference: int
    reference_found: int

    @property
    def precision(self) -> float:
        """Share of the prediction's lesions that are real, or 0 if there are none."""
        return self.predicted_right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the reference's lesions that were found, or 0 if there are none."""
        return self.reference_found / self.reference if self.reference else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2.0 * self.precision * self.recall / total if total else 0.0


def detect_lesions(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], connectivity: int = 26, overlap: float = 0.0
) -> LesionScores:
    """Match connected components of prediction and reference (boolean, one shape, axes i, j, k).

    A component counts as matched if more than ``overlap`` of its voxels lies in the other mask; with the default
    of 0 one common voxel is enough, so that the score tells detection apart from delineation.
    """
    sides = ((prediction, reference), (reference, prediction))
    return LesionScores(*(count for side in sides for count in _matched(*side, connectivity, overlap)))


def _matched(mask: NDArray[np.bool_], other: NDArray[np.bool_], connectivity: int, overlap: float) -> tuple[int, int]:
    # As bytes: for booleans cc3d 3.x reserves too few labels where single voxels are packed densely, and raises.
    components, count = cc3d.connected_components(mask.view(np.uint8), connectivity=connectivity, return_N=True)
    sizes = np.bincount(components[mask], minlength=count + 1)[1:]
    covered = np.bincount(components[mask & other], minlength=count + 1)[1:]
    return int(count), int(np.count_nonzero(covered > overlap * sizes))
