"""Panels as coloured pictures: with their lines, letters and scale, and in rows under a title, over a legend."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg.pictures.panel import Panel

__all__ = ["Colours", "Entry", "render", "sheet"]

Colours = Mapping[int, tuple[int, int, int]]
"""Colour by label, three numbers from 0 to 255."""

_GROUND, _INK, _REFERENCE = (16, 20, 22), (223, 230, 234), (255, 255, 255)
_TEXT_PX, _LINE_PX, _GAP_PX = 13, 20, 6
_FINE = 2
_DASH_PX, _SPACE_PX = 4.0, 3.0


@dataclass(frozen=True)
class Entry:
    """One line of a legend: a colour (None: the dashed line of references) and what it stands for."""

    colour: tuple[int, int, int] | None
    name: str


def render(panel: Panel, colours: Colours, caption: str = "", *, fine: int = _FINE) -> NDArray[np.uint8]:
    """A panel as a picture, (height, width, 3).

    Parameters
    ----------
    panel
        What is drawn.
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
    found = importlib.util.find_spec("matplotlib")  # not imported: only its file is wanted
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if path.is_file():
            return ImageFont.truetype(str(path), _TEXT_PX)
    return ImageFont.load_default(_TEXT_PX)
