"""Slices that are missing, as after a broken transfer or between thick slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.config import KeysCollection
from torch import Tensor

from medseg.transforms.corruption import RandCorruptiond

__all__ = ["MissingSlices", "RandMissingSlicesd"]


@dataclass(frozen=True)
class MissingSlices:
    """One draw.

    Attributes
    ----------
    axis
        Spatial axis, counted from 0, across which the slices lie.
    places
        Their indices.
    """

    axis: int
    places: tuple[int, ...]


class RandMissingSlicesd(RandCorruptiond):
    """Replace some slices of one random direction by a constant; the same ones for all keys.

    Parameters
    ----------
    keys
        Volumes ``(C, H, W[, D])``; plain tensors come out.
    prob
        Probability that slices are missing.
    fraction
        Range of the fraction of slices that are missing; at least one is, and at least one stays.
    longest
        Slices are missing in runs of 1 to ``longest`` neighbours.
    axes
        Spatial axes of which one is drawn; by default all.
    fill
        Value in the place of a missing slice.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        fraction: Sequence[float] = (0.05, 0.25),
        longest: int = 3,
        axes: Sequence[int] | None = None,
        fill: float = 0.0,
    ) -> None:
        super().__init__(keys, prob)
        if longest < 1 or not 0.0 <= min(fraction) <= max(fraction) <= 1.0:
            raise ValueError(
                f"found runs of {longest} and a fraction of {tuple(fraction)}, expected at least 1 and 0 to 1"
            )
        self.fraction, self.longest, self.fill = tuple(fraction), longest, fill
        self.axes = None if axes is None else tuple(axes)

    def draw(self, shape: Sequence[int]) -> MissingSlices:
        """Draw what is missing in volumes of the spatial ``shape``."""
        axes = tuple(range(len(shape))) if self.axes is None else self.axes
        axis = int(axes[self.R.randint(len(axes))])
        count = int(shape[axis])
        wanted = min(max(1, round(self.R.uniform(*self.fraction) * count)), count - 1)
        missing: set[int] = set()
        while len(missing) < wanted:
            run = min(self.R.randint(1, self.longest + 1), wanted - len(missing))
            start = self.R.randint(count)
            missing.update(range(start, min(start + run, count)))
        return MissingSlices(axis, tuple(sorted(missing)))

    def apply(self, volume: Tensor, drawn: MissingSlices) -> Tensor:
        """Apply a draw to a volume ``(C, H, W[, D])``."""
        return volume.index_fill(drawn.axis + 1, torch.tensor(drawn.places, dtype=torch.long), self.fill)
