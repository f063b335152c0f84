"""What goes wrong in scanners and transfers: grain whose specks are larger than a voxel, and missing slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.config import KeysCollection
from torch import Tensor
from torch.nn.functional import interpolate

from medseg.transforms.base import RandCorruptiond

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class GrainDraw:
    """One draw.

    Attributes
    ----------
    strength
        Standard deviation of the grain relative to the signal.
    field
        Noise of mean 0 and variance 1 at the grain's own resolution, ``(1, a[, b[, c]])``.
    """

    strength: float
    field: Tensor


class RandGraind(RandCorruptiond):
    """Multiply each volume by random specks: ``lowest + (x − lowest) × (1 + strength × grain)``.

    The signal is counted from the volume's lowest value, so that normalised volumes, in which 0 is the mean, are
    disturbed as their magnitudes would be. All keys get the same grain.

    Parameters
    ----------
    keys
        Volumes ``(C, H, W[, D])``; plain tensors come out.
    prob
        Probability of grain.
    strength
        Range of its standard deviation relative to the signal.
    size
        Range of the specks' size in voxels; 1 is a value of its own for each voxel.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        strength: Sequence[float] = (0.05, 0.3),
        size: Sequence[float] = (1.0, 2.5),
    ) -> None:
        super().__init__(keys, prob)
        if min(size) < 1.0:
            raise ValueError(f"found specks of {min(size)} voxels, expected at least 1")
        self.strength, self.size = tuple(strength), tuple(size)

    def draw(self, shape: Sequence[int]) -> GrainDraw:
        """Draw grain for volumes of the spatial ``shape``."""
        strength, size = self.R.uniform(*self.strength), self.R.uniform(*self.size)
        coarse = [max(2, round(n / size)) for n in shape]
        return GrainDraw(strength, torch.as_tensor(self.R.standard_normal((1, *coarse)), dtype=torch.float32))

    def apply(self, volume: Tensor, drawn: GrainDraw) -> Tensor:
        """Apply a draw to a volume ``(C, H, W[, D])``."""
        shape = volume.shape[1:]
        grain = drawn.field
        if tuple(grain.shape[1:]) != tuple(shape):
            grain = interpolate(grain[None], tuple(shape), mode=_MODES[len(shape)], align_corners=True)[0]
            grain = grain / grain.std().clamp_min(1e-6)  # interpolation takes variance away
        lowest = volume.amin()
        return (lowest + (volume - lowest) * (1.0 + drawn.strength * grain)).to(volume.dtype)


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
        Value in the place of a missing slice; None: the volume's lowest one, as in a file that was never filled there.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        fraction: Sequence[float] = (0.05, 0.25),
        longest: int = 3,
        axes: Sequence[int] | None = None,
        fill: float | None = 0.0,
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
        fill = float(volume.amin()) if self.fill is None else self.fill
        return volume.index_fill(drawn.axis + 1, torch.tensor(drawn.places, dtype=torch.long), fill)
