"""One convention for every picture: a structure at the patient's right, front and top is drawn on the left, on top."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from numpy.typing import NDArray
from PIL import Image

from medseg import outputs
from medseg.geometry import lps_to_ras
from medseg.pictures import Layer, draw, rgb, view_along, view_of_frame
from medseg.pictures.view import colour
from medseg.report.collect import Case
from medseg.report.pictures import SIDE_PX, planes, read_case
from medseg.training.pictures import Samples
from tests.outputs.series import FakeBundle, rotation, write_series

FIRST = rgb(colour(0))
STORED = ("RAS", "LPS", "ASR", "SPL", "IRA")


def stored(axcodes: str, degrees: float = 0.0) -> NDArray[np.float64]:
    """Affine (RAS mm) of a grid of unequal steps whose axes run as told, perhaps turned by some degrees."""
    ends = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, step) in enumerate(zip(axcodes, (1.0, 1.5, 3.0), strict=True)):
        place, sign = ends[letter]
        affine[place, axis] = sign * step
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3]
    return affine


def phantom(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A cube of 12 mm towards the patient's right, front and top of the middle of a grid."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    middle = (np.array(shape) - 1) / 2
    position = (index - middle) @ affine[:3, :3].T
    return np.asarray((np.abs(position - 8.0) < 6.0).all(axis=-1), np.uint8)


def shape_of(affine: NDArray[np.float64]) -> tuple[int, int, int]:
    i, j, k = (int(extent // step) for extent, step in zip((60, 60, 33), _steps(affine), strict=True))
    return i, j, k


def _steps(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.round(np.linalg.norm(affine[:3, :3], axis=0), 6))


def coloured(picture: NDArray[np.uint8], ink: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(picture.astype(int) - ink).max(axis=-1) < 60)


@pytest.mark.parametrize(("axcodes", "degrees"), [*product(STORED, (0.0,)), ("LPS", 12.0), ("ASR", 15.0)])
def test_every_way_of_storing_a_volume_gives_one_picture(axcodes: str, degrees: float) -> None:
    affine = stored(axcodes, degrees)
    labels = phantom(affine, shape_of(affine))
    edges = {}
    for axis in range(3):
        view = view_along(affine, axis)
        edges[view.plane] = view.left[0] + view.right[0] + view.top[0] + view.bottom[0]
        at = int(np.argmax(np.count_nonzero(labels, axis=tuple(a for a in range(3) if a != axis))))
        drawn = np.take(labels, at, axis)
        panel = draw(view, None, [Layer(drawn)], number=at + 1, longest_px=200)
        points = np.concatenate(panel.outlines[0][1][1])
        assert (points.mean(axis=0) < np.array(panel.size) * 0.48).all()
        width, height = np.ptp(points, axis=0)
        assert width == pytest.approx(height, rel=0.2 if not degrees else 0.35)
    assert edges == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def test_oblique_edges_name_both_sides() -> None:
    turn = np.radians(30.0)
    view = view_of_frame((-np.cos(turn), -np.sin(turn), 0.0), (np.sin(turn), -np.cos(turn), 0.0))
    assert (view.plane, view.left, view.right, view.top, view.bottom) == ("axial", "RA", "LP", "AL", "PR")


def test_without_an_affine_nothing_is_said_of_the_edges() -> None:
    view = view_along(None, 2)
    assert (view.left, view.top, view.pixel_mm) == ("", "", (1.0, 1.0))


@pytest.mark.parametrize("axcodes", STORED)
def test_report_training_and_secondary_capture_agree(axcodes: str, tmp_path: Path) -> None:
    affine = stored(axcodes)
    labels = phantom(affine, shape_of(affine))
    for name, picture in {**_sample(labels, affine, tmp_path), **_capture(labels, affine, tmp_path)}.items():
        rows, columns = np.nonzero(coloured(picture, FIRST))
        assert rows.size, name
        assert rows.mean() < picture.shape[0] / 2, name
        assert columns.mean() < picture.shape[1] / 2, name
    for plane in _report(labels, affine, tmp_path):
        assert plane.left + plane.top in {"RA", "RS", "AS"}
        points = [float(v) for v in plane.prediction[1].strip("MZ").replace(",", " ").split()]
        assert max(points) < SIDE_PX


def _report(labels: NDArray[np.uint8], affine: NDArray[np.float64], folder: Path) -> Any:
    for name in ("prediction", "image"):
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / f"{name}.nii.gz")
    case = Case("a", prediction=folder / "prediction.nii.gz", image=folder / "image.nii.gz")
    volumes = read_case(case)
    assert volumes is not None
    assert volumes.image is not None
    return planes(volumes)


def _sample(labels: NDArray[np.uint8], affine: NDArray[np.float64], folder: Path) -> dict[str, NDArray[np.uint8]]:
    """The panels of a training's picture; its chain forgets the affine, as those of the bundles do."""
    volume = MetaTensor(torch.as_tensor(labels[None].copy(), dtype=torch.float32), affine=torch.as_tensor(affine))
    chain = Compose(
        [Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0), mode="nearest"), _forget]
    )
    dataset = Dataset([{"image": volume}], chain)
    handler = Samples(
        folder / "samples", dataset, torch.nn.Identity(), _found, cases=(0,), tensorboard=False, label_names=("cube",)
    )
    engine = Engine(lambda *_: None)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "device", torch.device("cpu")))
    handler.attach(engine)
    engine.run([0])
    page = np.asarray(Image.open(folder / "samples" / "epoch-0001.png"))
    return {f"sample {i}": page[26:286, 6 + i * 266 : 266 + i * 266] for i in range(3)}


def _forget(case: dict[str, Any]) -> dict[str, Any]:
    plain = case["image"].as_tensor()
    return {"image": plain, "label": plain}


def _found(image: torch.Tensor, _: Any) -> torch.Tensor:
    return torch.cat([0.5 - image, image - 0.5], dim=1)


def _capture(labels: NDArray[np.uint8], affine: NDArray[np.float64], folder: Path) -> dict[str, NDArray[np.uint8]]:
    record, geometry = write_series(folder / "series", lps_to_ras(affine), labels.shape)
    written = outputs.write("sc", labels, geometry, record, FakeBundle(), folder / "o.dcm")
    width, height = draw(view_along(affine, 2), None, [Layer(labels[:, :, 0])], number=1, longest_px=384).size
    return {"capture": pydicom.dcmread(written).pixel_array[0][26 : 26 + height, 6 : 6 + width]}
