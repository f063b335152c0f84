"""Makes the pictures of the README from a real run: ``python docs/make_pictures.py MSD_TASK04_FOLDER FOLD0_WEIGHTS``.

Takes a case of fold 0, labels it by the flagship bundle with the weights that ``benchmarks.train_flagship`` has trained
without that fold, and draws the three planes in which prediction and reference are largest.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.evaluation import evaluate_case
from medseg.files import atomic_path
from medseg.geometry import Geometry
from medseg.inference import run_batch
from medseg.ingest import read_volume
from medseg.manifests import Manifest
from medseg.pictures import Entry, Layer, around, colour, draw, render, rgb, sheet, view_along, window_of

ROOT = Path(__file__).resolve().parent
BUNDLE = ROOT.parent / "bundles" / "hippocampus_mri_segmentation"
NAMES = {1: "anterior hippocampus", 2: "posterior hippocampus"}
COLOURS = {value: rgb(colour(value - 1)) for value in NAMES}
PANEL_PX = 340


def main(dataset: Path, weights: Path) -> None:
    manifest = Manifest.read(BUNDLE / "configs" / "datalist.json", dataset_dir=dataset)
    _, held_out = manifest.fold(0)
    image_path, label_path = (manifest.files(held_out[0], key)[0] for key in ("image", "label"))
    with tempfile.TemporaryDirectory() as folder:
        bundle = shutil.copytree(BUNDLE, Path(folder) / BUNDLE.name, ignore=shutil.ignore_patterns("trust", "model.*"))
        shutil.copy(weights, bundle / "models" / "model.pt")
        run_batch(bundle, [image_path], Path(folder) / "out")
        prediction, geometry, _ = read_volume(next((Path(folder) / "out").glob("*_seg.nii.gz")))
    image, reference = read_volume(image_path)[0], read_volume(label_path)[0]
    scores = evaluate_case(prediction, reference, geometry.spacing_mm, NAMES)
    dice = ", ".join(f"{score.name} {score.dice:.3f}" for score in scores)
    title = f"A case the model never saw ({image_path.name.split('.')[0]}). Dice: {dice}"
    page = sheet([(title, _draw(image, prediction, reference, geometry))], _legend())
    with atomic_path(ROOT / "images" / "hippocampus.png") as partial:
        Image.fromarray(page).save(partial)


def _draw(
    image: NDArray[Any], prediction: NDArray[Any], reference: NDArray[Any], geometry: Geometry
) -> list[NDArray[np.uint8]]:
    pictures = []
    for axis in range(3):
        view = view_along(geometry.affine, axis)
        index = int(np.count_nonzero(reference, axis=tuple(a for a in range(3) if a != axis)).argmax())
        found, true, grey = (np.take(volume, index, axis) for volume in (prediction, reference, image))
        box = around(view.upright(np.any((prediction > 0) | (reference > 0), axis=axis)), view.pixel_mm)
        layers = [Layer(found), Layer(true.astype(np.uint8), dashed=True)]
        panel = draw(view, grey, layers, number=index + 1, longest_px=PANEL_PX, box=box, window=window_of(image))
        pictures.append(render(panel, COLOURS, f"{view.plane} {index + 1}"))
    return pictures


def _legend() -> list[Entry]:
    return [*(Entry(COLOURS[value], f"{NAMES[value]}, medseg") for value in NAMES), Entry(None, "human reference")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
