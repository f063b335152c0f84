"""What random corruptions share: one draw for all keys, applied to plain tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor

__all__ = ["RandCorruptiond"]


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
