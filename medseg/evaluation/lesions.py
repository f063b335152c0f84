"""Lesions one by one: which of the reference's were found, by which of the prediction's, by size.

Connected components are matched one to one by their intersection over union (IoU), the largest first, as the naive
threshold matcher of panoptica does. Sources: Kofler et al., *Panoptica: instance-wise evaluation of 3D semantic and
instance segmentation maps*, arXiv:2312.02608 (2023); Kirillov et al., *Panoptic segmentation*, CVPR 2019, for the
panoptic quality; Maier-Hein et al., *Metrics reloaded*, Nature Methods 21 (2024), for localisation by IoU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

Status = Literal["found", "missed", "invented"]


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
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], voxel_ml: float, connectivity: int, least_iou: float
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
    (ours, n_ours), (theirs, n_theirs) = (
        cc3d.connected_components(mask.view(np.uint8), connectivity=connectivity, return_N=True)
        for mask in (prediction, reference)
    )
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
