"""Makes the picture of an imported whole-head network: ``python docs/make_head_picture.py BUNDLE IMAGE LABEL_MAP``.

Draws the label map that ``medseg infer BUNDLE IMAGE`` gave, in the colours that the bundle states, in the three planes
in which one structure (the hippocampus) is largest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from medseg.bundle import Bundle
from medseg.files import atomic_path
from medseg.ingest import read_volume
from medseg.pictures import Entry, Layer, around, draw, render, rgb, sheet, view_along, window_of

OUTPUT = Path(__file__).resolve().parent / "images" / "whole_head.png"
SHOWN = "Hippocampus"
PANEL_PX = 420


def main(bundle: Bundle, image_path: Path, label_path: Path) -> None:
    image, geometry, _ = read_volume(image_path)
    labels = read_volume(label_path)[0].astype(np.uint8)
    colours = {value: rgb(bundle.label_codes[value]["colour"]) for value in bundle.labels}
    shown = labels == next(value for value, name in bundle.labels.items() if name == SHOWN)
    pictures = []
    for axis in range(3):
        view = view_along(geometry.affine, axis)
        index = int(np.count_nonzero(shown, axis=tuple(a for a in range(3) if a != axis)).argmax())
        found, grey = (np.take(volume, index, axis) for volume in (labels, image))
        box = around(view.upright(np.any(labels > 0, axis=axis)), view.pixel_mm)
        panel = draw(
            view, grey, [Layer(found)], number=index + 1, longest_px=PANEL_PX, box=box, window=window_of(image)
        )
        pictures.append(render(panel, colours, f"{view.plane} {index + 1}"))
    legend = [Entry(colours[value], name) for value, name in bundle.labels.items()]
    page = sheet([(f"{len(legend)} structures of a whole head, through the hippocampus", pictures)], legend)
    with atomic_path(OUTPUT) as partial:
        Image.fromarray(page).save(partial)


if __name__ == "__main__":
    main(Bundle.open(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
