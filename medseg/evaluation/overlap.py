"""Overlap of two masks: of their voxels, of their centrelines, and of their lesions (connected components).

Lesions are told found or missed, and one by one: matched by their intersection over union (IoU), the largest first, as
the naive threshold matcher of panoptica does. Sources: Kofler et al., *Panoptica: instance-wise evaluation of 3D
semantic and instance segmentation maps*, arXiv:2312.02608 (2023); Kirillov et al., *Panoptic segmentation*, CVPR 2019,
for the panoptic quality; Maier-Hein et al., *Metrics reloaded*, Nature Methods 21 (2024), for localisation by IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Status = Literal["found", "missed", "invented"]


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
    components, count = _components(mask, connectivity)
    sizes = np.bincount(components[mask], minlength=count + 1)[1:]
    covered = np.bincount(components[mask & other], minlength=count + 1)[1:]
    return int(np.count_nonzero(covered > overlap * sizes)) / count


def _components(mask: Mask, connectivity: int) -> tuple[NDArray[Any], int]:
    # As bytes: for booleans cc3d 3.x reserves too few labels where single voxels are packed densely, and raises.
    found, count = cc3d.connected_components(mask.view(np.uint8), connectivity=connectivity, return_N=True)
    return found, int(count)


def _harmonic_mean(one: float, other: float) -> float:
    return 2.0 * one * other / (one + other) if one + other else 0.0


@dataclass(frozen=True)
class Lesion:
    """One lesion of the reference, found or missed, or one of the prediction that has no partner.

    Volumes in ml, that of the side that has none is 0; ``iou`` and ``dice`` are those with its partner.
    """

    status: Status
    volume_ml: float
    reference_volume_ml: float
    iou: float = 0.0
    dice: float = 0.0

    def stratum(self, edges_ml: Sequence[float]) -> str:
        """Its size, by the reference where there is one: ``<0.1 ml``, ``0.1–1 ml``, ``≥1 ml``."""
        size = self.reference_volume_ml or self.volume_ml
        return strata(edges_ml)[int(np.searchsorted(edges_ml, size, side="right"))]


def strata(edges_ml: Sequence[float]) -> list[str]:
    """Names of the sizes between edges in ml, the smallest first."""
    if not edges_ml:
        return ["all"]
    between = [f"{low:g}–{high:g} ml" for low, high in pairwise(edges_ml)]
    return [f"<{edges_ml[0]:g} ml", *between, f"≥{edges_ml[-1]:g} ml"]


def match_lesions(
    prediction: Mask, reference: Mask, voxel_ml: float, connectivity: int, least_iou: float
) -> tuple[Lesion, ...]:
    """Match the components of two masks (one shape, axes i, j, k) one to one.

    Pairs are taken in order of their IoU, the largest first, those of one IoU in order of the reference's and then the
    prediction's voxels; a pair needs an IoU of at least ``least_iou`` and at least one common voxel. The lesions of the
    reference come first, in order of their first voxel, then what was invented.

    Examples
    --------
    >>> reference, prediction = np.zeros((2, 1, 1, 20), bool)
    >>> reference[0, 0, [0, 1, 2, 3, 10]] = True
    >>> prediction[0, 0, [1, 2, 3, 15]] = True
    >>> [(one.status, one.iou) for one in match_lesions(prediction, reference, 1.0, 26, 0.5)]
    [('found', 0.75), ('missed', 0.0), ('invented', 0.0)]
    """
    (ours, n_ours), (theirs, n_theirs) = _components(prediction, connectivity), _components(reference, connectivity)
    our_sizes = np.bincount(ours[prediction], minlength=n_ours + 1)
    their_sizes = np.bincount(theirs[reference], minlength=n_theirs + 1)
    both = prediction & reference
    pairs, common = np.unique(theirs[both] * np.int64(n_ours + 1) + ours[both], return_counts=True)
    of_theirs, of_ours = np.divmod(pairs, n_ours + 1)
    iou = common / (their_sizes[of_theirs] + our_sizes[of_ours] - common)
    partner: dict[int, tuple[int, float, float]] = {}
    taken: set[int] = set()
    for place in np.argsort(-iou, kind="stable"):
        their, our = int(of_theirs[place]), int(of_ours[place])
        if iou[place] >= least_iou and their not in partner and our not in taken:
            dice = 2.0 * int(common[place]) / int(their_sizes[their] + our_sizes[our])
            partner[their] = (our, float(iou[place]), dice)
            taken.add(our)
    found: list[Lesion] = []
    for their in range(1, n_theirs + 1):
        our, overlap, dice = partner.get(their, (0, 0.0, 0.0))
        volume_ml = float(our_sizes[our]) * voxel_ml if our else 0.0
        found.append(
            Lesion("found" if our else "missed", volume_ml, float(their_sizes[their]) * voxel_ml, overlap, dice)
        )
    alone = [our for our in range(1, n_ours + 1) if our not in taken]
    return (*found, *(Lesion("invented", float(our_sizes[our]) * voxel_ml, 0.0) for our in alone))


def summarise_lesions(lesions: Sequence[Lesion], edges_ml: Sequence[float]) -> dict[str, Mapping[str, Any]]:
    """Counts and scores of lesions of many cases together: of all, and by size."""
    sized = {size: [one for one in lesions if one.stratum(edges_ml) == size] for size in strata(edges_ml)}
    return {size: _figures(inside) for size, inside in {"all": list(lesions), **sized}.items()}


def _figures(lesions: Sequence[Lesion]) -> dict[str, Any]:
    """Sensitivity, precision, F1 (recognition quality), and the mean IoU of the found (segmentation quality)."""
    counts = {status: sum(one.status == status for one in lesions) for status in ("found", "missed", "invented")}
    found, real, claimed = counts["found"], counts["found"] + counts["missed"], counts["found"] + counts["invented"]
    f1 = 2.0 * found / (real + claimed) if real + claimed else None
    quality = sum(one.iou for one in lesions) / found if found else None
    return {
        "n_reference": real,
        **{f"n_{status}": count for status, count in counts.items()},
        "sensitivity": found / real if real else None,
        "precision": found / claimed if claimed else None,
        "f1": f1,
        "mean_iou": quality,
        "mean_dice": sum(one.dice for one in lesions) / found if found else None,
        "panoptic_quality": None if f1 is None else f1 * (quality or 0.0),
    }
