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

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medseg.evaluation import evaluate_case
from medseg.files import atomic_path
from medseg.inference import run_batch
from medseg.ingest import read_volume
from medseg.manifests import Manifest

ROOT = Path(__file__).resolve().parent
BUNDLE = ROOT.parent / "bundles" / "hippocampus_mri_segmentation"
COLOURS = {1: "#ffb000", 2: "#2fa4ff"}
NAMES = {1: "anterior hippocampus", 2: "posterior hippocampus"}
PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))


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
    with atomic_path(ROOT / "images" / "hippocampus.png") as partial:
        _draw(image, prediction, reference, dice).savefig(partial, dpi=110, facecolor="black")


def _draw(image: NDArray[Any], prediction: NDArray[Any], reference: NDArray[Any], dice: str) -> Any:
    figure, panels = plt.subplots(1, 3, figsize=(10, 4.3), facecolor="black")
    low, high = np.percentile(image, (1, 99.5))
    for panel, (name, axis) in zip(panels, PLANES, strict=True):
        index = int(((reference > 0).sum(axis=tuple(a for a in range(3) if a != axis))).argmax())
        planes = [np.take(volume, index, axis).T for volume in (image, prediction, reference)]
        panel.imshow(planes[0], cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bicubic")
        for value, colour in COLOURS.items():
            panel.contour(planes[1] == value, [0.5], colors=colour, linewidths=2)
            panel.contour(planes[2] == value, [0.5], colors="white", linewidths=1, linestyles="dotted")
        panel.set_title(name, color="white")
        panel.axis("off")
    handles = [Line2D([], [], color=COLOURS[value], lw=2, label=f"{NAMES[value]}, medseg") for value in COLOURS]
    handles.append(Line2D([], [], color="white", lw=1, ls="dotted", label="human reference"))
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, labelcolor="white")
    figure.suptitle(f"A case the model never saw. Dice: {dice}", color="white", y=0.99)
    figure.tight_layout(rect=(0, 0.07, 1, 0.98))
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
