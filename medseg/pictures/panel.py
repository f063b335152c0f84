"""One slice drawn: grey values in physical proportions, outlines, edges, a scale; the same for every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from PIL import Image

from medseg.pictures.view import View

__all__ = ["Box", "Layer", "Panel", "Window", "around", "draw", "whole", "window_of"]

Window = tuple[float, float]
"""The values that are drawn black and white."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of what is shown, in pixels of the upright slice; it may reach over the edge."""

Lines = list[NDArray[np.float64]]

_SMALLEST_VIEW_MM = 48.0
_CONTEXT = 1.7
_BARS_MM = (10, 5, 2, 1)
_BAR_PART = 0.4
"""Part of the width that a short bar may take: the letter at the lower edge stands beside it."""
_LONG_BAR_FROM_MM = 120.0


@dataclass(frozen=True)
class Layer:
    """A label map drawn over the image: a slice as it is stored, and whether its lines are dashed (a reference)."""

    labels: NDArray[np.integer]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A slice as it is looked at, ready to be put on a page, into a file or a DICOM object.

    Parameters
    ----------
    view
        Plane, edges, size of pixels.
    number
        Which slice of its direction, from 1.
    grey
        Picture of 8 bits, (height, width); None without an image.
    size
        Width and height in pixels; pixels are square in the patient.
    outlines
        For each layer, closed lines by label: (x, y) in pixels of the picture, at the 0.5 level of the mask.
    bar_px, bar_mm
        Length of the scale bar.
    """

    view: View
    number: int
    grey: NDArray[np.uint8] | None
    size: tuple[int, int]
    outlines: tuple[tuple[Layer, Mapping[int, Lines]], ...]
    bar_px: float
    bar_mm: int


def window_of(image: NDArray[np.generic]) -> Window:
    """The window that shows nearly all values: from the 1st to the 99.5th percentile."""
    low, high = np.percentile(np.nan_to_num(np.asarray(image, np.float32)), (1.0, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def whole(shape: tuple[int, ...]) -> Box:
    """The box of a whole upright slice (rows, columns)."""
    return 0.0, 0.0, float(shape[1]), float(shape[0])


def around(marked: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> Box:
    """Square in mm round what is marked in an upright slice; round the whole slice if nothing is."""
    height, width = marked.shape
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
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


def draw(
    view: View,
    image: NDArray[np.generic] | None,
    layers: Sequence[Layer],
    *,
    number: int,
    longest_px: int,
    box: Box | None = None,
    window: Window | None = None,
) -> Panel:
    """Draw one slice.

    Parameters
    ----------
    view
        How it is held.
    image
        Grey values as they are stored, (row, column); None if there are only label maps.
    layers
        Label maps of the same shape.
    number
        Which slice of its direction, from 1.
    longest_px
        Length of the longer side of the picture.
    box
        What is shown of it; all if not given.
    window
        Values of black and white; those of the slice itself if not given.
    """
    upright = None if image is None else view.upright(np.asarray(image))
    shape = view.upright(np.asarray(layers[0].labels)).shape if upright is None else upright.shape
    shown = box or whole(shape)
    width_mm, height_mm = (shown[2] - shown[0]) * view.pixel_mm[0], (shown[3] - shown[1]) * view.pixel_mm[1]
    scale = longest_px / max(width_mm, height_mm)
    size = (max(round(width_mm * scale), 8), max(round(height_mm * scale), 8))
    bar_mm = 50 if width_mm >= _LONG_BAR_FROM_MM else next((n for n in _BARS_MM if n <= _BAR_PART * width_mm), 1)
    return Panel(
        view,
        number,
        None if upright is None else _resampled(upright, shown, size, window or window_of(upright)),
        size,
        tuple((layer, _outlines(view.upright(layer.labels), shown, size)) for layer in layers),
        round(bar_mm / width_mm * size[0], 1),
        bar_mm,
    )


def _resampled(plane: NDArray[np.generic], box: Box, size: tuple[int, int], window: Window) -> NDArray[np.uint8]:
    low, high = window
    values = np.nan_to_num(np.asarray(plane, np.float32))
    grey = np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0) * 255.0 + 0.5, np.uint8)
    picture = Image.fromarray(grey).transform(
        size, Image.Transform.EXTENT, data=box, resample=Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def _outlines(labels: NDArray[np.integer], box: Box, size: tuple[int, int]) -> dict[int, Lines]:
    """Outline of each label at the 0.5 level, in pixels of the picture."""
    padded = np.pad(np.asarray(labels), 1)
    scale = np.array([size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1])])
    shift = np.array([-0.5 - box[0], -0.5 - box[1]])  # undo the padding; the centre of a pixel is at 0.5
    found: dict[int, Lines] = {}
    for label in np.unique(padded):
        if label == 0:
            continue
        generator = contour_generator(z=(padded == label).astype(np.float32), line_type=LineType.Separate)
        found[int(label)] = [(np.asarray(line) + shift) * scale for line in generator.lines(0.5)]
    return found
