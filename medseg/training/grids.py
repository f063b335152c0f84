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

from medseg.pictures import Window, draw, render, sheet, view_along, window_of
from medseg.training.parallel import is_first
from medseg.training.placing import affine_of, case_name, save_picture
from medseg.training.sampling import Draw, TrainingDataset

__all__ = ["NoiseGrids", "RestorationGrids"]

_PANEL_PX = 120


def pictures(
    volume: Tensor, affine: NDArray[np.float64] | None = None, window: Window | None = None
) -> list[NDArray[np.uint8]]:
    """The three middle planes of ``(1, H, W, D)``, or the picture of ``(1, H, W)``, the patient's right on the left."""
    array = volume[0].float().cpu().numpy()
    if array.ndim == 2:
        return [_picture(array[:, :, None], 2, affine, window)]
    return [_picture(array, axis, affine, window) for axis in (2, 1, 0)]


def _picture(
    array: NDArray[Any], axis: int, affine: NDArray[np.float64] | None, window: Window | None
) -> NDArray[np.uint8]:
    view, at = view_along(affine, axis), array.shape[axis] // 2
    panel = draw(view, np.take(array, at, axis), [], number=at + 1, longest_px=_PANEL_PX, window=window)
    return render(panel, {}, "" if affine is None else f"{view.plane} {at + 1}")


class RestorationGrids:
    """Handler that shows cases before corruption, corrupted and restored, in three planes, in one grey range.

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
        headings = ["original", "", "", "corrupted", "", "", "restored"]
        save_picture(sheet(rows, [], headings), self.folder / f"epoch-{engine.state.epoch:04d}.png")

    def _row(self, case: int, device: torch.device) -> tuple[str, list[NDArray[np.uint8]]]:
        item = self.dataset[Draw(case, case)]
        restored = answer(self.network, lambda network: self.inferer(item["image"][None].to(device), network))
        affine, window = affine_of(self.dataset, item["image"]), window_of(item["label"][0].cpu().numpy())
        shown = [
            picture for v in (item["label"], item["image"], restored[0]) for picture in pictures(v, affine, window)
        ]
        return case_name(self.dataset, case), shown


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
        shown = [picture for volume in created for picture in pictures(volume)]
        across = max(1, round(len(shown) ** 0.5 / 3)) * 3 if created.ndim == 5 else round(len(shown) ** 0.5)
        rows = [("", shown[start : start + across]) for start in range(0, len(shown), across)]
        save_picture(sheet(rows, []), self.folder / f"epoch-{engine.state.epoch:04d}.png")


def answer(network: nn.Module, ask: Callable[[nn.Module], Tensor]) -> Tensor:
    """What ``ask`` gets out of the network in evaluation mode; the mode is put back afterwards."""
    training = network.training
    network.eval()
    with torch.inference_mode():
        result = ask(network)
    network.train(training)
    return result
