"""Random vectors as an item of the data, so that a GAN's noise is drawn like every other random number of a run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

__all__ = ["RandLatentd"]


class RandLatentd(Randomizable, MapTransform):
    """Put standard normal noise under each key, whatever was there.

    Parameters
    ----------
    keys
        Keys to fill.
    size
        Shape of the noise, channel first: ``(64, 1, 1, 1)`` for a generator of volumes from 64 numbers.
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int]) -> None:
        MapTransform.__init__(self, keys)
        self.size = tuple(int(n) for n in size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw."""
        noise = {key: torch.as_tensor(self.R.standard_normal(self.size), dtype=torch.float32) for key in self.keys}
        return {**data, **noise}
