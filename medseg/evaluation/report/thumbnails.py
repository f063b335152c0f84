"""Small pictures of a case: three planes with contours, at the slice where a reader should look."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.evaluation.report.volumes import CaseVolumes
from medseg.pictures import Layer, Panel, around, draw, view_along

__all__ = ["SIDE_PX", "Plane", "planes", "worst_slice"]

SIDE_PX = 208
"""Side of a picture in pixels."""


@dataclass(frozen=True)
class Plane:
    """One picture: a WebP under vector contours, all in a square of :data:`SIDE_PX`."""

    name: str
    slice_number: int
    left: str
    right: str
    top: str
    bottom: str
    picture: str
    prediction: Mapping[int, str]
    reference: Mapping[int, str]
    bar_px: float
    bar_mm: int


def planes(volumes: CaseVolumes) -> tuple[Plane, ...]:
    """Axial, coronal and sagittal picture of a case."""
    return tuple(_plane(volumes, axis) for axis in (2, 1, 0))


def worst_slice(volumes: CaseVolumes, axis: int) -> int:
    """Index along ``axis`` of the slice to look at.

    That with most disagreeing voxels; without a reference that of greatest doubt; without trust that of the largest
    area; else the middle.
    """
    prediction, others = volumes.prediction, tuple(a for a in range(3) if a != axis)
    if volumes.reference is not None:
        differing = np.count_nonzero(prediction != volumes.reference, axis=others)
        if differing.any():
            return int(np.argmax(differing))
    if volumes.doubt is not None and volumes.doubt.any():
        return int(np.argmax(volumes.doubt.sum(axis=others)))
    if volumes.look_at is not None:
        return volumes.look_at[axis]
    area = np.count_nonzero(prediction, axis=others)
    return int(np.argmax(area)) if area.any() else prediction.shape[axis] // 2


def _plane(volumes: CaseVolumes, axis: int) -> Plane:
    index = worst_slice(volumes, axis)
    view = view_along(volumes.affine, axis)
    marked = volumes.prediction > 0
    if volumes.reference is not None:
        marked |= volumes.reference > 0
    layers = [Layer(np.take(volumes.prediction, index, axis))]
    if volumes.reference is not None:
        layers.append(Layer(np.take(volumes.reference, index, axis), dashed=True))
    panel = draw(
        view,
        None if volumes.image is None else np.take(volumes.image, index, axis),
        layers,
        number=index + 1,
        longest_px=SIDE_PX,
        box=around(view.upright(np.any(marked, axis=axis)), view.pixel_mm),
    )
    paths = [{label: "".join(map(_path, lines)) for label, lines in outlines.items()} for _, outlines in panel.outlines]
    return Plane(
        name=view.plane,
        slice_number=panel.number,
        left=view.left,
        right=view.right,
        top=view.top,
        bottom=view.bottom,
        picture=_encode(panel),
        prediction=paths[0],
        reference=paths[1] if len(paths) > 1 else {},
        bar_px=panel.bar_px,
        bar_mm=panel.bar_mm,
    )


def _encode(panel: Panel) -> str:
    if panel.grey is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(panel.grey).save(buffer, "WEBP", quality=78, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _path(points: NDArray[np.float64]) -> str:
    corners = _corners(points)
    return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in corners) + "Z"


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out points on a straight line between their neighbours; the first point is not repeated at the end."""
    ring = points[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-6
    return np.asarray(ring[turns])
