"""Probabilities on the source grid, one structure at a time: never all of them at full size in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.inference.config import InferenceConfig
from medseg.inference.sliding_window import Chunk

STEPS = 255
"""A probability is stored as a whole number from 0 to this."""

Volume = NDArray[np.uint8]


def require_probabilities(config: InferenceConfig, bundle: str) -> None:
    """Refuse a bundle whose network gives no probabilities that medseg can take to the source grid.

    Raises ``UsageError`` if its postprocessing has no softmax or sigmoid, or is run as written.
    """
    if config.post.written is not None:
        why = "its postprocessing is none of the usual orders and is run as written, which leaves labels alone"
    elif config.post.decoding.activation == "none":
        why = "its postprocessing has no softmax or sigmoid (Activationsd), so its scores are no probabilities"
    else:
        return
    raise UsageError(f"--write probabilities: {bundle} cannot give them: {why}; leave probabilities out of --write")


@dataclass(frozen=True)
class ProbabilityMaps:
    """Probabilities of every channel on the source grid, computed as they are asked for.

    ``channels`` is their number, background first where the network has one, else one for each region; ``volume``
    makes the one with a number, ``(H, W, D)``, in steps of 1/255.
    """

    channels: int
    volume: Callable[[int], Volume]

    def __iter__(self) -> Iterator[Volume]:
        return map(self.volume, range(self.channels))

    def moved(self, move: Callable[[Any], Any]) -> ProbabilityMaps:
        """The same with every volume changed, as pasted into a larger one."""
        return replace(self, volume=lambda channel: move(self.volume(channel)))


class ProbabilitySpool:
    """Keeps the probabilities of a volume on the network's grid in a file without a name, in half precision.

    ``shape`` is that of the grid, the file lies in ``folder``, and is gone when nobody holds its maps any more.
    """

    def __init__(self, shape: tuple[int, ...], activate: Callable[[Chunk], Chunk], folder: Path) -> None:
        self._shape, self._activate, self._folder = shape, activate, folder
        self._kept: np.memmap[Any, np.dtype[np.float16]] | None = None

    def add(self, chunk: Chunk) -> None:
        """Keep some planes of the network's output."""
        values = self._activate(chunk).scores
        if self._kept is None:
            with tempfile.TemporaryFile(dir=self._folder) as file:  # the mapping outlives the handle
                self._kept = np.memmap(file, np.float16, "w+", shape=(values.shape[0], *self._shape))
        self._kept[:, chunk.start : chunk.start + values.shape[1]] = values.numpy()

    def maps(self, to_source: Callable[[torch.Tensor], NDArray[np.float32]]) -> ProbabilityMaps:
        """The maps; ``to_source`` takes a field ``(H, W, D)`` of the network's grid to the source grid, linearly."""
        kept = self._kept
        if kept is None:
            raise UsageError("there was no output of a network to keep probabilities of")

        def volume(channel: int) -> Volume:
            fine = to_source(torch.from_numpy(kept[channel].astype(np.float32)))
            return np.rint(np.clip(fine, 0.0, 1.0) * STEPS).astype(np.uint8)

        return ProbabilityMaps(kept.shape[0], volume)
