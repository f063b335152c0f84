"""Small pictures of a case: three planes with contours, at the slice where a reader should look."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from PIL import Image

from medseg.evaluation.report.volumes import CaseVolumes

__all__ = ["SIDE_PX", "Plane", "planes", "worst_slice"]

SIDE_PX = 208
"""Side of a picture in pixels."""

_SMALLEST_VIEW_MM = 48.0
_CONTEXT = 1.7
_NAMES = {0: "sagittal", 1: "coronal", 2: "axial"}
# Letters at the left and the top edge in radiological convention (the patient's right on the viewer's left).
_LETTERS = {0: ("A", "S"), 1: ("R", "S"), 2: ("R", "A")}


@dataclass(frozen=True)
class Plane:
    """One picture: a WebP under vector contours, all in a square of :data:`SIDE_PX`."""

    name: str
    slice_number: int
    left: str
    top: str
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
    pixel_mm = _pixel_size(volumes.spacing_mm, axis)
    box = _view(volumes, axis, pixel_mm)
    image = None if volumes.image is None else _upright(volumes.image, axis, index)
    bar_mm = 10 if (box[2] - box[0]) * pixel_mm[0] < 120 else 50
    left, top = _LETTERS[axis]
    return Plane(
        name=_NAMES[axis],
        slice_number=index + 1,
        left=left,
        top=top,
        picture=_encode(image, box),
        prediction=_contours(_upright(volumes.prediction, axis, index), box),
        reference={} if volumes.reference is None else _contours(_upright(volumes.reference, axis, index), box),
        bar_px=round(bar_mm / ((box[2] - box[0]) * pixel_mm[0]) * SIDE_PX, 1),
        bar_mm=bar_mm,
    )


def _upright(volume: NDArray[np.generic], axis: int, index: int) -> NDArray[np.generic]:
    """Slice as (row, column) as radiologists look at it: right or anterior on the left, anterior or superior up."""
    return np.take(volume, index, axis=axis).T[::-1, ::-1]


def _pixel_size(spacing_mm: tuple[float, float, float], axis: int) -> tuple[float, float]:
    column, row = (spacing_mm[a] for a in range(3) if a != axis)
    return column, row


def _view(volumes: CaseVolumes, axis: int, pixel_mm: tuple[float, float]) -> tuple[float, float, float, float]:
    """Square in mm around all structures, as (left, top, right, bottom) in pixels; it may reach over the edge."""
    marked = volumes.prediction > 0
    if volumes.reference is not None:
        marked |= volumes.reference > 0
    outline: NDArray[np.bool_] = np.asarray(marked.any(axis=axis)).T[::-1, ::-1]
    height, width = outline.shape
    rows, columns = np.flatnonzero(outline.any(axis=1)), np.flatnonzero(outline.any(axis=0))
    whole_mm = max(width * pixel_mm[0], height * pixel_mm[1])
    if not rows.size:
        rows, columns, side_mm = np.array([0, height - 1]), np.array([0, width - 1]), whole_mm
    else:
        extent_mm = max((np.ptp(columns) + 1) * pixel_mm[0], (np.ptp(rows) + 1) * pixel_mm[1])
        side_mm = min(max(_CONTEXT * extent_mm, _SMALLEST_VIEW_MM), max(whole_mm, extent_mm))
    half = (side_mm / pixel_mm[0] / 2, side_mm / pixel_mm[1] / 2)
    x = _centre((columns[0] + columns[-1] + 1) / 2, half[0], width)
    y = _centre((rows[0] + rows[-1] + 1) / 2, half[1], height)
    return x - half[0], y - half[1], x + half[0], y + half[1]


def _centre(wanted: float, half: float, size: int) -> float:
    """Move the view inside the picture where it fits; centre the picture where it does not."""
    return size / 2 if 2 * half >= size else min(max(wanted, half), size - half)


def _encode(image: NDArray[np.generic] | None, box: tuple[float, float, float, float]) -> str:
    if image is None:
        return ""
    picture = Image.fromarray(_windowed(image)).transform(
        (SIDE_PX, SIDE_PX), Image.Transform.EXTENT, data=box, resample=Image.Resampling.BILINEAR
    )
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=78, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _windowed(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, (1.0, 99.5))
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0) * 255.0 + 0.5, np.uint8)


def _contours(labels: NDArray[np.generic], box: tuple[float, float, float, float]) -> dict[int, str]:
    """SVG path of each label's outline at the 0.5 level."""
    padded = np.pad(np.asarray(labels), 1)
    scale = np.array([SIDE_PX / (box[2] - box[0]), SIDE_PX / (box[3] - box[1])])
    shift = np.array([-0.5 - box[0], -0.5 - box[1]])  # undo the padding; the centre of a pixel is at 0.5
    paths: dict[int, str] = {}
    for label in np.unique(padded)[1:]:
        generator = contour_generator(z=(padded == label).astype(np.float32), line_type=LineType.Separate)
        lines = [(np.asarray(line) + shift) * scale for line in generator.lines(0.5)]
        paths[int(label)] = "".join(_path(line) for line in lines)
    return paths


def _path(points: NDArray[np.float64]) -> str:
    corners = _corners(points)
    return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in corners) + "Z"


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out points on a straight line between their neighbours; the first point is not repeated at the end."""
    ring = points[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-6
    return np.asarray(ring[turns])
