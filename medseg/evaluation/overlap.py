"""Metrics of voxels and of lesions: counts first, ratios from the counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray


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
