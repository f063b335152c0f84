"""Pictures of images that a network restores or creates, each few epochs, always of the same cases and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.files import atomic_path
from medseg.training.parallel import is_first
from medseg.training.sampling import Draw, TrainingDataset

__all__ = ["NoiseGrids", "RestorationGrids"]


def planes(volume: Tensor) -> list[NDArray[Any]]:
    """The three middle planes of ``(1, H, W, D)`` as pictures, or the picture of ``(1, H, W)``, first axis upright."""
    array = volume[0].float().cpu().numpy()
    if array.ndim == 2:
        return [array.T]
    return [np.take(array, array.shape[axis] // 2, axis=axis).T for axis in range(3)]


def draw_grid(rows: Sequence[Sequence[NDArray[Any]]], path: str | PathLike[str], titles: Sequence[str] = ()) -> None:
    """Write pictures as rows of a grid, all in the grey range that the first one has."""
    from matplotlib.figure import Figure

    low, high = float(rows[0][0].min()), float(rows[0][0].max())
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.3 * columns, 1.4 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        for place in axes:
            place.set_axis_off()
        for place, picture in zip(axes, row, strict=False):
            place.imshow(picture, cmap="gray", origin="lower", vmin=low, vmax=high, interpolation="nearest")
    for place, title in zip(grid[0], titles, strict=False):
        place.set_title(title, fontsize=7)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=90)


class RestorationGrids:
    """Handler that shows cases before corruption, corrupted and restored, in three planes.

    Parameters
    ----------
    folder
        Where ``epoch-NNNN.png`` goes.
    dataset
        Cases with the corrupted ``image`` and the original ``label``; each is always corrupted in the same way.
    network, inferer
        What restores, and how.
    interval
        Epochs between pictures.
    cases
        Indices of the cases.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        dataset: TrainingDataset,
        network: nn.Module,
        inferer: Callable[..., Any],
        interval: int = 1,
        cases: Sequence[int] = (0, 1, 2),
    ) -> None:
        self.folder, self.dataset, self.network, self.inferer = Path(folder), dataset, network, inferer
        self.interval, self.cases = interval, tuple(cases)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._draw, engine)

    def _draw(self, engine: Engine) -> None:
        if not is_first():
            return
        cases = [case for case in self.cases if case < len(self.dataset)]
        rows = [self._row(case, engine.state.device) for case in cases]
        draw_grid(rows, self.folder / f"epoch-{engine.state.epoch:04d}.png", ["original", "", "", "corrupted"])

    def _row(self, case: int, device: torch.device) -> list[NDArray[Any]]:
        item = self.dataset[Draw(case, case)]
        restored = answer(self.network, lambda network: self.inferer(item["image"][None].to(device), network))
        return [*planes(item["label"]), *planes(item["image"]), *planes(restored[0])]


class NoiseGrids:
    """Handler that shows what a generator makes of the same noise after each epoch.

    Parameters
    ----------
    folder
        Where ``epoch-NNNN.png`` goes.
    network
        The generator.
    size
        Shape of the noise for one image, channel first.
    count
        Number of images.
    interval
        Epochs between pictures.
    seed
        Of the noise.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        network: nn.Module,
        size: Sequence[int],
        count: int = 16,
        interval: int = 1,
        seed: int = 0,
    ) -> None:
        self.folder, self.network, self.interval = Path(folder), network, interval
        self.noise = torch.randn((count, *size), generator=torch.Generator().manual_seed(seed))

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._draw, engine)

    def _draw(self, engine: Engine) -> None:
        if not is_first():
            return
        created = answer(self.network, lambda network: network(self.noise.to(engine.state.device)))
        pictures = [picture for volume in created for picture in planes(volume)]
        across = max(1, round(len(pictures) ** 0.5 / 3)) * 3 if created.ndim == 5 else round(len(pictures) ** 0.5)
        rows = [pictures[start : start + across] for start in range(0, len(pictures), across)]
        draw_grid(rows, self.folder / f"epoch-{engine.state.epoch:04d}.png")


def answer(network: nn.Module, ask: Callable[[nn.Module], Tensor]) -> Tensor:
    """What ``ask`` gets out of the network in evaluation mode; the mode is put back afterwards."""
    training = network.training
    network.eval()
    with torch.inference_mode():
        result = ask(network)
    network.train(training)
    return result
