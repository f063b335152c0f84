"""Metrics of voxels, of centrelines and of lesions: counts first, ratios from the counts."""

from __future__ import annotations

from collections.abc import Callable

import cc3d
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def voxel_scores(both: int, prediction: int, reference: int) -> dict[str, float]:
    """Overlap of two masks that both hold a voxel, from their numbers of voxels: in both, in either of them."""
    return {
        "dice": 2.0 * both / (prediction + reference),
        "iou": both / (prediction + reference - both),
        "precision": both / prediction,
        "recall": both / reference,
    }


def centreline_dice(prediction: Mask, reference: Mask) -> float:
    """Harmonic mean of the share of each mask's skeleton that lies in the other; both hold a voxel (axes i, j, k).

    Source: Shit et al., *clDice: a novel topology-preserving loss function for tubular structure segmentation*, CVPR
    2021; the skeleton is that of Lee et al., CVGIP 56 (1994), from scikit-image.
    """
    from skimage.morphology import skeletonize

    # the outermost voxels have no neighbours to tell the skeleton what is outside
    skeleton: Callable[[Mask], Mask] = skeletonize
    ours, theirs = (skeleton(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] > 0 for mask in (prediction, reference))
    precision = int(np.count_nonzero(ours & reference)) / max(int(np.count_nonzero(ours)), 1)
    sensitivity = int(np.count_nonzero(theirs & prediction)) / max(int(np.count_nonzero(theirs)), 1)
    return _harmonic_mean(precision, sensitivity)


def lesion_scores(prediction: Mask, reference: Mask, connectivity: int = 26, overlap: float = 0.0) -> dict[str, float]:
    """Which connected components of two masks, that both hold a voxel (axes i, j, k), were found or are real.

    A component counts as matched if more than ``overlap`` of its voxels lies in the other mask; with the default
    of 0 one common voxel is enough, so that the score tells detection apart from delineation.
    """
    precision = _matched_share(prediction, reference, connectivity, overlap)
    recall = _matched_share(reference, prediction, connectivity, overlap)
    return {"lesion_precision": precision, "lesion_recall": recall, "lesion_f1": _harmonic_mean(precision, recall)}


def _matched_share(mask: Mask, other: Mask, connectivity: int, overlap: float) -> float:
    # As bytes: for booleans cc3d 3.x reserves too few labels where single voxels are packed densely, and raises.
    components, count = cc3d.connected_components(mask.view(np.uint8), connectivity=connectivity, return_N=True)
    sizes = np.bincount(components[mask], minlength=count + 1)[1:]
    covered = np.bincount(components[mask & other], minlength=count + 1)[1:]
    return int(np.count_nonzero(covered > overlap * sizes)) / int(count)


def _harmonic_mean(one: float, other: float) -> float:
    return 2.0 * one * other / (one + other) if one + other else 0.0
