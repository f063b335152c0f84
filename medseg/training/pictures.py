"""Pictures during training, in radiological orientation: of results, and of restored or created images.

Where the cases of a dataset lie in the patient, and what they are called, for the pictures of a training.

Pictures of images that a network restores or creates, each few epochs, always of the same cases and noise.

Pictures of the same few cases during training, so that a person can watch the network learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Orientationd, Spacing, Spacingd
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from medseg.files import atomic_path
from medseg.ingest import case_id_of
from medseg.ingest.record import image_kind
from medseg.pictures import Entry, Layer, Window, around, colour, draw, render, rgb, sheet, view_along, window_of
from medseg.training.data import Draw, TrainingDataset
from medseg.training.distributed import is_first
from medseg.training.metrics_log import write_picture

_DIRECTIONS = {
    **dict(zip("RAS", np.eye(3), strict=True)),
    **dict(zip("LPI", -np.eye(3), strict=True)),
}


def affine_of(dataset: Any, image: Any) -> NDArray[np.float64] | None:
    """Voxel index → RAS mm of an image of a dataset, without its position where the tensor has lost the affine.

    Training chains drop meta data at their end; what their ``Orientationd`` and ``Spacingd`` have brought the case to
    still holds. None if the chain has neither affine nor orientation.
    """
    if isinstance(image, MetaTensor):
        return np.asarray(image.affine, dtype=np.float64)
    axcodes, pixdim = None, (1.0, 1.0, 1.0)
    for transform in _flat(getattr(dataset, "transform", None)):
        found = getattr(transform, "ornt_transform", transform)
        if isinstance(transform, Orientation | Orientationd) and getattr(found, "axcodes", None):
            axcodes = str("".join(found.axcodes))
        if isinstance(transform, Spacing | Spacingd):
            pixdim = _three(getattr(transform, "spacing_transform", transform).pixdim)
    if axcodes is None or len(axcodes) != 3:
        return None
    affine = np.eye(4)
    for axis, (letter, step) in enumerate(zip(axcodes, pixdim, strict=True)):
        affine[:3, axis] = _DIRECTIONS[letter.upper()] * step
    return affine


def _three(pixdim: Any) -> tuple[float, float, float]:
    steps = [float(step) for step in np.atleast_1d(pixdim)]
    x, y, z = (steps * 3)[:3] if len(steps) == 1 else steps[:3]
    return x, y, z


def _flat(transform: Any) -> Iterator[Any]:
    if isinstance(transform, Compose):
        for part in transform.transforms:
            yield from _flat(part)
    elif transform is not None:
        yield transform


def case_name(dataset: Any, index: int) -> str:
    """The case id of an image file, as in a run; a number for what has no file of its own.

    Names of folders of DICOM files are not used: they may carry a patient's name.
    """
    items = getattr(dataset, "data", ())
    item = items[index] if isinstance(items, Sequence) and index < len(items) else None
    image = item.get("image") if isinstance(item, dict) else None
    first = image[0] if isinstance(image, list | tuple) and image else image
    if isinstance(first, str | Path) and image_kind(first) is not None:
        return case_id_of(first)
    return f"case {index + 1}"


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (height, width, 3) as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial)


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


_SAMPLES_PANEL_PX = 260


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
            longest_px=_SAMPLES_PANEL_PX,
            box=around(marked, view.pixel_mm),
            window=window,
        )
        pictures.append(render(panel, colours, f"{view.plane if view.left else 'slice'} {at + 1}"))
    return pictures
