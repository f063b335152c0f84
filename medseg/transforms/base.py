"""What random transforms share: one draw for all keys, apart from its application; and noise as an item of data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor


class RandCorruptiond(RandomizableTransform, MapTransform):
    """Draw once with probability ``prob`` and apply the draw to the volumes ``(C, H, W[, D])`` of all keys."""

    def __init__(self, keys: KeysCollection, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw once and apply to every key; the input is left as it is."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            volumes = {key: convert_to_tensor(result[key], track_meta=False) for key in self.keys}
            drawn = self.draw(next(iter(volumes.values())).shape[1:])
            result.update({key: self.apply(volume, drawn) for key, volume in volumes.items()})
        return result

    @abstractmethod
    def draw(self, shape: Sequence[int]) -> Any:
        """Draw for volumes of the spatial ``shape``."""

    @abstractmethod
    def apply(self, volume: Tensor, drawn: Any) -> Tensor:
        """Apply a draw to a volume ``(C, H, W[, D])``."""


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
