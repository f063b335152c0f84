"""What can be said of a result where nothing was calibrated: whether it is implausible, and no more.

A bundle of somebody else's, or one that was planned a minute ago, has no results with their ground truth, so that
nothing is known of its Dice. What can be seen without any is whether anything was found, whether it hangs together,
whether the image ends where the structure does not, how sure the network is, and whether it says the same when it looks
once more, from closer by. Each of these has one number and one limit; what passes all of them is "not calibrated",
never accepted.

Memory: one label a voxel, and a few numbers a class. Scores are looked at a few planes at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.labels.decoding import LabelDecoding
from medseg.results.accept_table import GOOD_DICE
from medseg.results.verdict import (
    CUT_OFF,
    NOT_CALIBRATED,
    NOTHING_FOUND,
    SCATTERED,
    SECOND_LOOK_DIFFERS,
    UNSURE,
    Verdict,
)
from medseg.trust.crop import are_probabilities, with_background

Labels = NDArray[np.integer[Any]]

_CHANCE = 0.02
"""Chances below are not counted: a whole body holds enough background to drown a small structure in them."""
_COUNTS = 0.05
"""Share of all structures from which one counts by itself; of a hundred the smallest are always unsure."""
_ELEMENTS = 1 << 22
"""Scores that are looked at at once, 16 MiB of each kind."""
_WIDE = 0.8
"""Share of its largest section that a structure has on the image's border if it goes on beyond."""


@dataclass(frozen=True)
class Plausibility:
    """What is known of one result without any other; None where there is nothing to tell it from."""

    found: bool  # whether any structure was
    largest: float | None = None  # share of the structures' voxels that lie in the largest piece of each
    uncut: float | None = None  # share of them in structures that do not end where the image does
    confidence: float | None = None  # Dice that the scores themselves expect, of the worst structure that counts
    agreement: float | None = None  # Dice of two looks at the same place

    @property
    def flags(self) -> tuple[str, ...]:
        """What is implausible; a number that lies on its limit is not."""
        if not self.found:
            return (NOTHING_FOUND,)
        numbers = ((flag, getattr(self, name), limit) for flag, name, limit in LIMITS)
        return tuple(flag for flag, number, limit in numbers if number is not None and number < limit)

    @property
    def verdict(self) -> Verdict:
        """Not calibrated; to be reviewed if anything is implausible."""
        return Verdict(NOT_CALIBRATED, flags=self.flags)


LIMITS: tuple[tuple[str, str, float], ...] = (
    (SCATTERED, "largest", 0.5),
    (CUT_OFF, "uncut", 0.5),
    (UNSURE, "confidence", GOOD_DICE),
    (SECOND_LOOK_DIFFERS, "agreement", GOOD_DICE),
)
"""Flag, number, and the limit below which it is implausible: what most of a result is decides, or a good Dice."""


class ScoreTally:
    """What the scores of one volume say, taken as they pass: the label of every voxel, and how sure they are of it."""

    def __init__(self, decoding: LabelDecoding) -> None:
        self.decoding = decoding
        self._planes: list[Labels] = []
        self.sums: NDArray[np.float64] = np.zeros((3, 1))

    def add(self, scores: Tensor) -> None:
        """Take the next planes ``(K, h, W, D)`` of the volume."""
        step = max(1, _ELEMENTS // max(scores[:, 0].numel(), 1))
        for begin in range(0, scores.shape[1], step):
            labels, sums = decoded(scores[:, begin : begin + step], self.decoding)
            self._planes.append(labels)
            self.sums = self.sums + sums

    @property
    def labels(self) -> Labels:
        """``(H, W, D)`` on the network's grid."""
        return np.concatenate(self._planes)

    @property
    def confidence(self) -> float | None:
        """Dice of the labels against their own probabilities, of the worst structure that counts; None without a label.

        As ``soft-dice`` of :mod:`medseg.trust.features`. A structure that should be there in all probability, and is
        not, counts with 0.
        """
        inside, chances, size = self.sums
        if not size.any():
            return None
        share = chances + size
        counts = share >= min(_COUNTS * share.sum(), share.max())
        return float((2 * inside[counts] / share[counts]).min())


def decoded(scores: Tensor, decoding: LabelDecoding) -> tuple[Labels, NDArray[np.float64]]:
    """Labels ``(h, W, D)`` of scores ``(K, h, W, D)``, and three sums for each structure.

    These are the probabilities of what is labelled, those everywhere, and the number of labelled voxels.
    """
    if decoding.threshold is not None:
        active = torch.sigmoid(scores) if decoding.activation == "sigmoid" else scores
        masks, chances = active >= decoding.threshold, active.clamp(0.0, 1.0)
        combination = sum((mask.long() << number for number, mask in enumerate(masks)), torch.zeros(()).long())
        labels = torch.tensor(decoding.table or (0, 1))[combination]
        inside, size = (chances * masks).sum((1, 2, 3)), masks.sum((1, 2, 3))
    else:
        both = with_background(scores, decoding)
        both = both if are_probabilities(decoding, scores) else both.softmax(0)
        largest, labels = both.max(0)
        flat, chances = labels.flatten(), both[1:]
        inside, size = (torch.bincount(flat, of, len(both))[1:] for of in (largest.flatten(), None))
    everywhere = torch.where(chances < _CHANCE, 0.0, chances).sum((1, 2, 3))
    kind = np.uint8 if int(labels.max()) < 256 else np.uint16
    return labels.numpy().astype(kind), torch.stack([inside, everywhere, size]).double().numpy()


def plausibility(
    labels: Labels, values: Mapping[int, tuple[int, ...]], confidence: float | None = None, agrees: float | None = None
) -> Plausibility:
    """What a label map ``(H, W, D)`` tells by itself, beside what the scores and a second look told.

    ``values``: Which values of the map belong to each structure; without any, each is one.
    """
    whole = held = uncut = 0
    boxes = dict(enumerate(ndimage.find_objects(labels), start=1))
    for own in values.values() or [(value,) for value in boxes]:
        known = [box for value in own if (box := boxes.get(value))]
        if not known:
            continue
        sides = [slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*known, strict=True)]
        inside = labels[tuple(sides)]
        mask = inside == own[0] if len(own) == 1 else np.isin(inside, own)
        size, pieces = int(np.count_nonzero(mask)), cc3d.connected_components(mask, connectivity=26)
        sizes = cc3d.statistics(pieces, no_slice_conversion=True)["voxel_counts"][1:]  # bincount copies to int64
        whole, held = whole + size, held + int(sizes.max())
        uncut += size * (not _is_cut(mask, sides, labels.shape))
    if not whole:
        return Plausibility(False)
    return Plausibility(True, held / whole, uncut / whole, confidence, agrees)


def _is_cut(mask: NDArray[np.bool_], box: Sequence[slice], shape: Sequence[int]) -> bool:
    """Whether a structure is about as wide on the image's border as anywhere: it goes on where the image ends."""
    for axis, (side, extent) in enumerate(zip(box, shape, strict=True)):
        sections = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
        ends = [sections[0]] * (side.start == 0) + [sections[-1]] * (side.stop == extent)
        if extent > 1 and max(ends, default=0) >= _WIDE * sections.max():
            return True
    return False
