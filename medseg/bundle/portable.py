"""Configs that were written for another machine or an older MONAI, so that they can be evaluated here.

What is changed is what gives the same network anywhere: devices that this machine lacks, arguments that MONAI has taken
back because they did nothing, and numpy's arrays in a file that ``torch.load`` reads, which become arrays without
running anything that the file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from medseg.bundle.config import target_of

TAKEN_BACK: dict[str, frozenset[str]] = {"SwinUNETR": frozenset({"img_size"})}
"""Arguments by class that MONAI no longer has, and that never changed what the network computes."""

_CUDA = re.compile(r"(['\"])cuda(?::\d+)?\1")
_DEVICE_KEYS = frozenset({"device", "map_location"})
_MOST_AXES = 8


def portable(config: Any, *, has_cuda: bool) -> Any:
    """A resolved config without what only another machine or an older MONAI understands.

    Without CUDA its devices become the CPU: named in an expression, or under ``device`` or ``map_location``.
    """
    if isinstance(config, list):
        return [portable(value, has_cuda=has_cuda) for value in config]
    if isinstance(config, str):
        return config if has_cuda or not config.startswith("$") else _CUDA.sub("'cpu'", config)
    if not isinstance(config, Mapping):
        return config
    gone = TAKEN_BACK.get(target_of(config), frozenset())
    kept = {key: portable(value, has_cuda=has_cuda) for key, value in config.items() if key not in gone}
    for key in _DEVICE_KEYS & kept.keys() if not has_cuda else ():
        if isinstance(kept[key], str) and kept[key].startswith("cuda"):
            kept[key] = "cpu"
    return kept


@contextmanager
def arrays_as_data() -> Iterator[None]:
    """Let ``torch.load`` read numpy's arrays in the body, as tensors: ``weights_only`` stays as it is."""
    import torch

    stand_ins: list[Any] = [(_Type, "numpy.dtype"), (_Array, "numpy.ndarray")]
    stand_ins += [(_Array.begun, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals(stand_ins):
        yield


class _Type:
    """What a pickle says of a type of numbers."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = name, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type, if it is one of plain numbers."""
        if not re.fullmatch(r"[biuf]\d\d?", str(self.name)) or self.order not in ("|", "<", ">"):
            raise ValueError(f"an array of {self.name!r}, expected plain numbers")
        return np.dtype(f"{self.order}{self.name}")


class _Array(np.ndarray[Any, Any]):
    """An array that a pickle fills with bytes and nothing else."""

    @staticmethod
    def begun(*_: Any) -> _Array:
        return _Array(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        shape = tuple(int(size) for size in shape)
        if not isinstance(data, bytes) or len(shape) > _MOST_AXES:
            raise ValueError("an array whose values are no bytes")
        values = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if by_columns else "C")
        super().__setstate__((1, values.shape, values.dtype, by_columns, values.tobytes("F" if by_columns else "C")))
