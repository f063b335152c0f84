"""Pictures of the same few cases during training, in radiological orientation, so that a person can watch it learn."""

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
from monai.networks import eval_mode
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

Picture = NDArray[np.uint8]
"""(height, width, 3)."""

_PANEL_PX, _SAMPLE_PX = 120, 260
_DIRECTIONS = {**dict(zip("RAS", np.eye(3), strict=True)), **dict(zip("LPI", -np.eye(3), strict=True))}


def pictures(volume: Tensor, affine: NDArray[np.float64] | None = None, window: Window | None = None) -> list[Picture]:
    """The three middle planes of ``(1, H, W, D)``, or the picture of ``(1, H, W)``, the patient's right on the left."""
    array = volume[0].float().cpu().numpy()
    if array.ndim == 2:
        return [_plane(array[:, :, None], 2, affine, window)]
    return [_plane(array, axis, affine, window) for axis in (2, 1, 0)]


def _plane(array: NDArray[Any], axis: int, affine: NDArray[np.float64] | None, window: Window | None) -> Picture:
    view, at = view_along(affine, axis), array.shape[axis] // 2
    panel = draw(view, np.take(array, at, axis), [], number=at + 1, longest_px=_PANEL_PX, window=window)
    return render(panel, {}, "" if affine is None else f"{view.plane} {at + 1}")


def _photograph(image: Tensor) -> Picture:
    """``(1 or 3, rows, columns)`` from −1 to 1, in whole pixels."""
    values = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte().expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    times = max(1, _PANEL_PX // max(values.shape))
    return values.repeat(times, axis=0).repeat(times, axis=1)


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial)


class _Pictures:
    """Handler that leaves ``epoch-NNNN.png`` in a folder every few epochs."""

    tensorboard = False

    def __init__(self, folder: str | PathLike[str], network: nn.Module, interval: int) -> None:
        self.folder, self.network, self.interval = Path(folder), network, interval

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._write, engine)

    def page(self, device: torch.device) -> Picture:
        """The picture of now."""
        raise NotImplementedError

    def _write(self, engine: Engine) -> None:
        if is_first():
            path = self.folder / f"epoch-{engine.state.epoch:04d}.png"
            save_picture(self.page(engine.state.device), path)
            if self.tensorboard:
                write_picture(self.folder.parent, self.folder.name, path, engine.state.epoch)


class NoiseGrids(_Pictures):
    """Handler that shows ``count`` images that a generator makes of the same noise of ``size``, channel first.

    It leaves ``epoch-NNNN.png`` in ``folder`` every ``interval`` epochs; ``seed`` is that of the noise. With
    ``photographs`` images are ``(C, rows, columns)`` from −1 to 1 and drawn as they are, else like slices of a patient.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        network: nn.Module,
        size: Sequence[int],
        count: int = 16,
        interval: int = 1,
        seed: int = 0,
        *,
        photographs: bool = False,
    ) -> None:
        super().__init__(folder, network, interval)
        self.photographs = photographs
        self.noise = torch.randn((count, *size), generator=torch.Generator().manual_seed(seed))

    def page(self, device: torch.device) -> Picture:
        """All images, each in its planes."""
        with eval_mode(self.network):
            created = self.network(self.noise.to(device))
        drawn = [[_photograph(image)] for image in created] if self.photographs else map(pictures, created)
        shown = [picture for planes in drawn for picture in planes]
        across = max(1, round(len(shown) ** 0.5 / 3)) * 3 if created.ndim == 5 else round(len(shown) ** 0.5)
        return sheet([("", shown[start : start + across]) for start in range(0, len(shown), across)], [])


class RestorationGrids(_Pictures):
    """Handler that shows cases before corruption, corrupted and restored, in three planes, in one grey range.

    It leaves ``epoch-NNNN.png`` in ``folder`` every ``interval`` epochs. The ``cases`` are indices of the data set,
    which has the corrupted ``image``, always in the same way, and the original ``label``.
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
        super().__init__(folder, network, interval)
        self.dataset, self.inferer, self.cases = dataset, inferer, tuple(cases)

    def page(self, device: torch.device) -> Picture:
        """A row for every case."""
        rows = [self._row(case, device) for case in self.cases if case < len(self.dataset)]
        return sheet(rows, [], ["original", "", "", "corrupted", "", "", "restored"])

    def _row(self, case: int, device: torch.device) -> tuple[str, list[Picture]]:
        item = self.dataset[Draw(case, case)]
        with eval_mode(self.network):
            restored = self.inferer(item["image"][None].to(device), self.network)
        affine, window = affine_of(self.dataset, item["image"]), window_of(item["label"][0].cpu().numpy())
        volumes = (item["label"], item["image"], restored[0])
        return case_name(self.dataset, case), [picture for v in volumes for picture in pictures(v, affine, window)]


@dataclass(frozen=True)
class _Case:
    """One case: image, its reference and what the network found, axes (i, j, k), and where they lie."""

    image: NDArray[Any]
    reference: NDArray[np.int32]
    found: NDArray[Any]
    affine: NDArray[np.float64] | None
    regions: Sequence[NDArray[np.bool_]] = ()  # found and reference, a channel for each region, where they are known

    def masks(self, label: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """A structure as it was found and in the reference."""
        if self.regions:
            return self.regions[0][label - 1], self.regions[1][label - 1]
        return self.found == label, self.reference == label

    @property
    def labels(self) -> list[int]:
        """Structures that either side has."""
        return sorted({int(value) for value in (*np.unique(self.reference), *np.unique(self.found)) if value > 0})

    def pictures(self) -> list[Picture]:
        """The three planes in which the reference is largest."""
        return [self._picture(axis) for axis in (2, 1, 0)]

    def _picture(self, axis: int) -> Picture:
        view = view_along(self.affine, axis)
        area = np.count_nonzero(self.reference, axis=tuple(other for other in range(3) if other != axis))
        at = int(np.argmax(area)) if area.any() else self.reference.shape[axis] // 2
        marked = view.upright(np.any((self.reference > 0) | (self.found > 0), axis=axis))
        panel = draw(
            view,
            np.take(self.image, at, axis),
            [Layer(np.take(self.found, at, axis)), Layer(np.take(self.reference, at, axis), dashed=True)],
            number=at + 1,
            longest_px=_SAMPLE_PX,
            box=around(marked, view.pixel_mm),
            window=window_of(self.image),
        )
        colours = {label: rgb(colour(label - 1)) for label in self.labels}
        return render(panel, colours, f"{view.plane if view.left else 'slice'} {at + 1}")


class Samples(_Pictures):
    """Handler that draws fixed validation cases as the report does: prediction solid, reference dashed, three planes.

    The patient's right is on the left; edges have letters where the orientation of the cases is known, from their
    affine or from the transforms that made them. The pictures, ``epoch-NNNN.png`` every ``interval`` epochs, go to
    ``folder`` and to ``tensorboard/`` beside it.

    The ``dataset`` has ``image`` and ``label``, each ``(1, H, W, D)``; of several channels the first is drawn. The
    ``cases`` are indices in it; ``label_names`` are for the structures from value 1 on, their values if not given. With
    ``overlapping`` regions the later ones are drawn over the earlier ones.
    """

    def __init__(  # noqa: PLR0913  what is shown, and how, with defaults
        self,
        folder: str | PathLike[str],
        dataset: Dataset[Any],
        network: nn.Module,
        inferer: Callable[..., Any],
        interval: int = 1,
        cases: Sequence[int] = (0, 1, 2),
        tensorboard: bool = True,
        label_names: Sequence[str] = (),
        *,
        overlapping: bool = False,
    ) -> None:
        super().__init__(folder, network, interval)
        self.dataset, self.inferer, self.cases, self.tensorboard = dataset, inferer, tuple(cases), tensorboard
        self.overlapping = overlapping
        self.names = dict(enumerate(label_names, start=1))

    def page(self, device: torch.device) -> Picture:
        """A row for every case, and the legend."""
        labels, rows = set(self.names), []
        for index in (index for index in self.cases if index < len(self.dataset)):  # type: ignore[arg-type]
            case = self._case(index, device)
            labels |= set(case.labels)
            rows.append((f"{case_name(self.dataset, index)}   {self._dice(case)}", case.pictures()))
        legend = [Entry(rgb(colour(label - 1)), f"{self.names.get(label, label)}") for label in sorted(labels)]
        return sheet(rows, [*legend, Entry(None, "reference")])

    def _case(self, index: int, device: torch.device) -> _Case:
        case = self.dataset[index]
        with eval_mode(self.network):
            logits = self.inferer(torch.as_tensor(case["image"])[None].to(device), self.network)
        label, scores = np.rint(np.asarray(case["label"])).astype(np.int32), logits[0].float().cpu()
        if self.overlapping:
            masks = (scores > 0).numpy(), label > 0
            known = [ours & (label >= 0) for ours in masks]
            found, reference = (_painted(mask) for mask in masks)
            return _Case(np.asarray(case["image"])[0], reference, found, affine_of(self.dataset, case["image"]), known)
        found = scores.max(dim=0).indices.numpy()
        return _Case(np.asarray(case["image"])[0], label[0].clip(0), found, affine_of(self.dataset, case["image"]))

    def _dice(self, case: _Case) -> str:
        """Dice of every structure that either side has."""
        words = []
        for label in case.labels:
            ours, theirs = case.masks(label)
            dice = 2.0 * np.count_nonzero(ours & theirs) / (np.count_nonzero(ours) + np.count_nonzero(theirs))
            words.append(f"{self.names.get(label, label)} {dice:.2f}")
        return f"Dice: {', '.join(words)}" if words else "no structure on either side"


def _painted(regions: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Regions ``(R, i, j, k)`` as one map: of every voxel the last one, counted from 1."""
    painted = np.zeros(regions.shape[1:], dtype=np.int32)
    for number, region in enumerate(regions, start=1):
        painted[region] = number
    return painted


def affine_of(dataset: Any, image: Any) -> NDArray[np.float64] | None:
    """Voxel index → RAS mm of an image of a dataset, without its position where the tensor has lost the affine.

    Training chains drop meta data at their end; what their ``Orientationd`` and ``Spacingd`` have brought the case to
    still holds. None if the chain has neither affine nor orientation.
    """
    if isinstance(image, MetaTensor):
        return np.asarray(image.affine, dtype=np.float64)
    axcodes, pixdim = "", np.ones(3)
    for transform in _flat(getattr(dataset, "transform", None)):
        if isinstance(transform, Orientation | Orientationd):
            axcodes = "".join(getattr(transform, "ornt_transform", transform).axcodes or axcodes)
        if isinstance(transform, Spacing | Spacingd):
            steps = np.atleast_1d(getattr(transform, "spacing_transform", transform).pixdim).astype(np.float64)
            pixdim = np.repeat(steps, 3) if len(steps) == 1 else steps
    if len(axcodes) != 3:
        return None
    affine = np.eye(4)
    for axis, letter in enumerate(axcodes):
        affine[:3, axis] = _DIRECTIONS[letter.upper()] * pixdim[axis]
    return affine


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
