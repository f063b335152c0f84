"""Pictures of the same few cases during training, so that a person can watch the network learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from medseg.pictures import Entry, Layer, around, colour, draw, render, rgb, sheet, view_along, window_of
from medseg.training.events import write_picture
from medseg.training.parallel import is_first
from medseg.training.placing import affine_of, case_name, save_picture

__all__ = ["Samples"]

_PANEL_PX = 260


@dataclass(frozen=True)
class _Case:
    """One case: image, its reference and what the network found, axes (i, j, k), and where they lie."""

    image: NDArray[Any]
    reference: NDArray[np.int32]
    found: NDArray[Any]
    affine: NDArray[np.float64] | None

    @property
    def labels(self) -> list[int]:
        """Structures that either side has."""
        return sorted({int(value) for value in (*np.unique(self.reference), *np.unique(self.found)) if value > 0})


class Samples:
    """Handler that draws fixed validation cases as the report does: prediction solid, reference dashed, three planes.

    The patient's right is on the left; edges have letters where the orientation of the cases is known, from their
    affine or from the transforms that made them.

    Parameters
    ----------
    folder
        Where ``epoch-NNNN.png`` goes.
    dataset
        Validation cases with ``image`` and ``label``, each ``(1, H, W, D)``; of several channels the first is drawn.
    network, inferer
        What is validated, and how.
    interval
        Epochs between pictures.
    cases
        Indices of the cases.
    tensorboard
        Whether the pictures also go to TensorBoard, to ``tensorboard/`` beside the folder.
    label_names
        Names of the structures from value 1 on; their values if not given.
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
        label_names: Sequence[str] = (),
    ) -> None:
        self.folder, self.dataset, self.network, self.inferer = Path(folder), dataset, network, inferer
        self.interval, self.cases, self.tensorboard = interval, tuple(cases), tensorboard
        self.names = dict(enumerate(label_names, start=1))

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._draw, engine)

    def _draw(self, engine: Engine) -> None:
        if not is_first():
            return
        count = len(self.dataset)  # type: ignore[arg-type]
        labels: set[int] = set(self.names)
        rows = []
        for index in (index for index in self.cases if index < count):
            case = self._case(index, engine.state.device)
            labels |= set(case.labels)
            rows.append((f"{case_name(self.dataset, index)}   {self._dice(case)}", _pictures(case)))
        legend = [Entry(rgb(colour(label - 1)), f"{self.names.get(label, label)}") for label in sorted(labels)]
        picture = self.folder / f"epoch-{engine.state.epoch:04d}.png"
        save_picture(sheet(rows, [*legend, Entry(None, "reference")]), picture)
        if self.tensorboard:
            write_picture(self.folder.parent, self.folder.name, picture, engine.state.epoch)

    def _case(self, index: int, device: torch.device) -> _Case:
        case = self.dataset[index]
        training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            logits = self.inferer(torch.as_tensor(case["image"])[None].to(device), self.network)
        self.network.train(training)
        return _Case(
            np.asarray(case["image"])[0],
            np.rint(np.asarray(case["label"])[0]).astype(np.int32),
            logits.float().max(dim=1).indices[0].cpu().numpy(),
            affine_of(self.dataset, case["image"]),
        )

    def _dice(self, case: _Case) -> str:
        """Dice of every structure that either side has."""
        told = []
        for label in case.labels:
            ours, theirs = case.found == label, case.reference == label
            dice = 2.0 * np.count_nonzero(ours & theirs) / (np.count_nonzero(ours) + np.count_nonzero(theirs))
            told.append(f"{self.names.get(label, label)} {dice:.2f}")
        return f"Dice: {', '.join(told)}" if told else "no structure on either side"


def _pictures(case: _Case) -> list[NDArray[np.uint8]]:
    """The three planes in which the reference is largest."""
    colours = {label: rgb(colour(label - 1)) for label in case.labels}
    window = window_of(case.image)
    pictures = []
    for axis in (2, 1, 0):
        view = view_along(case.affine, axis)
        area = np.count_nonzero(case.reference, axis=tuple(other for other in range(3) if other != axis))
        at = int(np.argmax(area)) if area.any() else case.reference.shape[axis] // 2
        marked = view.upright(np.any((case.reference > 0) | (case.found > 0), axis=axis))
        panel = draw(
            view,
            np.take(case.image, at, axis),
            [Layer(np.take(case.found, at, axis)), Layer(np.take(case.reference, at, axis), dashed=True)],
            number=at + 1,
            longest_px=_PANEL_PX,
            box=around(marked, view.pixel_mm),
            window=window,
        )
        pictures.append(render(panel, colours, f"{view.plane if view.left else 'slice'} {at + 1}"))
    return pictures
