"""One colour per structure."""

from __future__ import annotations

import colorsys

__all__ = ["colour", "rgb"]

# Okabe and Ito's palette: distinguishable with every common colour vision deficiency, and over grey images.
_PALETTE = ("#f0b000", "#3fb4ee", "#12b886", "#f0722c", "#e07bb4", "#f2e545", "#6f8df7")


def colour(index: int) -> str:
    """Colour of the structure with this position in the list of structures, as ``#rrggbb``."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = colorsys.hls_to_rgb(
        (index * 0.618034) % 1.0, 0.62, 0.72
    )  # the golden ratio keeps neighbours apart
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def rgb(text: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three numbers from 0 to 255."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
