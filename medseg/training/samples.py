"""Pictures of the same few cases during training, so that a person can watch the network learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from medseg.files import atomic_path
from medseg.training.events import write_picture
from medseg.training.parallel import is_first

__all__ = ["Samples"]


class Samples:
    """Handler that draws fixed validation cases: image, reference (green) and prediction (orange) in three planes.

    Parameters
    ----------
    folder
        Where ``epoch-NNNN.png`` goes.
    dataset
        Validation cases with ``image`` and ``label``, each ``(1, H, W, D)``.
    network, inferer
        What is validated, and how.
    interval
        Epochs between pictures.
    cases
        Indices of the cases.
    tensorboard
        Whether the pictures also go to TensorBoard, to ``tensorboard/`` beside the folder.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        dataset: Dataset[Any],
        network: nn.Module,
        inferer: Callable[..., Any],
        interval: int = 1,
        cases: Sequence[int] = (0, 1, 2),
        tensorboard: bool = True,
    ) -> None:
        self.folder, self.dataset, self.network, self.inferer = Path(folder), dataset, network, inferer
        self.interval, self.cases, self.tensorboard = interval, tuple(cases), tensorboard

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._draw, engine)

    def _draw(self, engine: Engine) -> None:
        if not is_first():
            return
        count = len(self.dataset)  # type: ignore[arg-type]
        rows = [self._case(index, engine.state.device) for index in self.cases if index < count]
        picture = self.folder / f"epoch-{engine.state.epoch:04d}.png"
        _picture(rows, picture)
        if self.tensorboard:
            write_picture(self.folder.parent, self.folder.name, picture, engine.state.epoch)

    def _case(self, index: int, device: torch.device) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        case = self.dataset[index]
        training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            logits = self.inferer(torch.as_tensor(case["image"])[None].to(device), self.network)
        self.network.train(training)
        found = logits.float().max(dim=1).indices[0].cpu().numpy()
        return np.asarray(case["image"])[0], np.asarray(case["label"])[0], found


def _picture(rows: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, (image, reference, found) in zip(grid, rows, strict=True):
        inside = np.argwhere(reference > 0)
        centre = inside.mean(axis=0).round().astype(int) if len(inside) else np.array(image.shape) // 2
        for plane, place in enumerate(axes):
            slices = [np.take(volume, centre[plane], axis=plane).T for volume in (image, reference, found)]
            place.imshow(slices[0], cmap="gray", origin="lower", interpolation="nearest")
            for mask, colour in ((slices[1], "limegreen"), (slices[2], "darkorange")):
                for label in np.unique(mask[mask > 0]):
                    place.contour(mask == label, levels=[0.5], colors=colour, linewidths=1.0)
            place.set_axis_off()
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=80)
