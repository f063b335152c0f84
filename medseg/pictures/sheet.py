"""Slices as pictures, the same for every output: grey values in physical proportions, outlines, edges, a scale.

A panel is one slice; panels become pictures with their lines, letters and scale, and pictures rows of a sheet, under
titles and over a legend.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg.pictures.view import View

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

Colours = Mapping[int, tuple[int, int, int]]
"""Colour by label, three numbers from 0 to 255."""

_GROUND, _INK, _REFERENCE = (16, 20, 22), (223, 230, 234), (255, 255, 255)
_TEXT_PX, _LINE_PX, _GAP_PX = 13, 20, 6
_FINE = 2
_DASH_PX, _SPACE_PX = 4.0, 3.0


@dataclass(frozen=True)
class Layer:
    """A label map drawn over the image: a slice as it is stored, and whether its lines are dashed (a reference)."""

    labels: NDArray[np.integer]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A slice as it is looked at, ready to be put on a page, into a file or a DICOM object."""

    view: View  # plane, edges, size of pixels
    number: int  # which slice of its direction, from 1
    grey: NDArray[np.uint8] | None  # picture of 8 bits, (height, width); None without an image
    size: tuple[int, int]  # width and height in pixels; pixels are square in the patient
    outlines: tuple[tuple[Layer, Mapping[int, Lines]], ...]
    """For each layer, closed lines by label: (x, y) in pixels of the picture, at the 0.5 level of the mask."""
    bar_px: float
    bar_mm: int
    """``bar_px``, ``bar_mm``: length of the scale bar."""


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


def _centre(middle: float, half: float, size: int) -> float:
    """Move the view inside the picture where it fits; centre the picture where it does not."""
    return size / 2 if 2 * half >= size else min(max(middle, half), size - half)


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


@dataclass(frozen=True)
class Entry:
    """One line of a legend: a colour (None: the dashed line of references) and what it stands for."""

    colour: tuple[int, int, int] | None
    name: str


def render(panel: Panel, colours: Colours, caption: str = "", *, fine: int = _FINE) -> NDArray[np.uint8]:
    """A panel as a picture, (height, width, 3).

    Parameters
    ----------
    colours
        Of the structures; labels without a colour are drawn white.
    caption
        Written into the upper left corner beside the plane and the number of the slice.
    fine
        How many times finer than the picture its lines are drawn before they are smoothed.
    """
    width, height = panel.size
    grey = Image.new("L", panel.size, _GROUND[0]) if panel.grey is None else Image.fromarray(panel.grey)
    picture = grey.convert("RGB").resize((width * fine, height * fine), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for layer, outlines in panel.outlines:
        for label, lines in outlines.items():
            ink = _REFERENCE if layer.dashed else colours.get(label, _REFERENCE)
            for line in lines:
                for part in _dashes(line) if layer.dashed else [line]:
                    corners = [(float(x) * fine, float(y) * fine) for x, y in part]
                    pen.line(corners, fill=ink, width=max(round(1.5 * fine), 2), joint="curve")
    smooth = picture.resize(panel.size, Image.Resampling.BOX) if fine > 1 else picture
    _label(ImageDraw.Draw(smooth), panel, caption)
    return np.asarray(smooth)


def _label(pen: ImageDraw.ImageDraw, panel: Panel, caption: str) -> None:
    width, height = panel.size
    view = panel.view
    for text, place, anchor in (
        (view.left, (5, height / 2), "lm"),
        (view.right, (width - 5, height / 2), "rm"),
        (view.top, (width / 2, 5 + (_LINE_PX if caption else 0)), "mt"),
        (view.bottom, (width / 2, height - 5), "mb"),
        (caption, (5, 5), "lt"),
        (f"{panel.bar_mm} mm", (8, height - 13), "lb"),
    ):
        if text:
            pen.text(place, text, _INK, _font(), anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    pen.line([(8, height - 8), (8 + panel.bar_px, height - 8)], fill=_INK, width=2)


def _dashes(line: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Pieces of a line with gaps between them."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    for start in np.arange(0.0, along[-1], _DASH_PX + _SPACE_PX):
        at = np.array([start, min(start + _DASH_PX, along[-1])])
        inside = line[(along > at[0]) & (along < at[1])]
        ends = np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], axis=1)
        yield np.concatenate([ends[:1], inside, ends[1:]])


def sheet(
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], legend: Sequence[Entry], columns: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Rows of pictures, each under its title, with a legend below: (height, width, 3).

    Parameters
    ----------
    rows
        Title and pictures of each row; an empty title takes no room.
    legend
        What the colours mean.
    columns
        Headings over the pictures of the first row.
    """
    widths = [sum(p.shape[1] + _GAP_PX for p in pictures) for _, pictures in rows]
    written = [_font().getlength(title) + _GAP_PX for title, _ in rows] + [_wide(entry) for entry in legend]
    width = int(max([*widths, *written, 8])) + 2 * _GAP_PX
    heights = [max((p.shape[0] for p in pictures), default=0) for _, pictures in rows]
    titles = [_LINE_PX * bool(title) for title, _ in rows]
    entries = _broken(legend, width)
    head, foot = _LINE_PX * bool(columns), _LINE_PX * len(entries)
    total = head + sum(heights) + sum(titles) + _GAP_PX * (len(rows) + 1) + foot
    page = Image.new("RGB", (width, total), _GROUND)
    pen, y = ImageDraw.Draw(page), _GAP_PX
    if columns and rows:
        for text, x in zip(columns, _starts(rows[0][1]), strict=False):
            pen.text((x, y), text, font=_font(), fill=_INK)
        y += head
    for (title, pictures), height, title_px in zip(rows, heights, titles, strict=True):
        pen.text((_GAP_PX, y), title, font=_font(), fill=_INK)
        y += title_px
        for picture, x in zip(pictures, _starts(pictures), strict=True):
            page.paste(Image.fromarray(picture), (x, y))
        y += height + _GAP_PX
    for line in entries:
        _write_legend(pen, line, y)
        y += _LINE_PX
    return np.asarray(page)


def _starts(pictures: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Left edges of pictures that stand beside each other."""
    ends = np.cumsum([picture.shape[1] + _GAP_PX for picture in pictures])
    return [_GAP_PX, *(int(end) + _GAP_PX for end in ends[:-1])][: len(pictures)]


def _broken(legend: Sequence[Entry], width: int) -> list[list[tuple[float, Entry]]]:
    """A legend in lines that fit into ``width``, each entry with where it begins."""
    lines: list[list[tuple[float, Entry]]] = []
    x = float(width)
    for entry in legend:
        if x + _wide(entry) > width:
            lines.append([])
            x = float(_GAP_PX)
        lines[-1].append((x, entry))
        x += _wide(entry)
    return lines


def _wide(entry: Entry) -> float:
    return 34 + _font().getlength(entry.name)


def _write_legend(pen: ImageDraw.ImageDraw, line: Sequence[tuple[float, Entry]], y: float) -> None:
    for x, entry in line:
        if entry.colour is None:
            for dash in (0, 7):
                pen.line([(x + dash, y + 8), (x + dash + 4, y + 8)], fill=_REFERENCE, width=2)
        else:
            pen.rectangle([x, y + 3, x + 11, y + 14], fill=entry.colour)
        pen.text((x + 18, y), entry.name, font=_font(), fill=_INK)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic; without it Pillow's own."""
    found = importlib.util.find_spec("matplotlib")  # not imported: only its file is needed
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if path.is_file():
            return ImageFont.truetype(str(path), _TEXT_PX)
    return ImageFont.load_default(_TEXT_PX)
