"""Both hippocampi of a whole head, in two stages: how well they agree with the first, and what margin and mirroring do.

``python -m benchmarks.two_stages HEAD LOCATOR -o FOLDER [--picture FILE]`` runs ``hippocampus_mri_segmentation`` on a
whole T1 head, located by another bundle (structure ``hippocampus``), and prints a table: for each side the volume of
both stages and the Dice between them, with several margins, and with and without mirroring. The first stage's label map
is kept in FOLDER, so that it is computed once. There is no reference: agreement of two networks is no accuracy.
``--crops MSD_TASK04_FOLDER`` adds Dice on every 17th of the bundle's training crops, as they are and mirrored.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image

from medseg.bundle import Bundle
from medseg.evaluation import evaluate_case
from medseg.geometry import Geometry, ras_axes
from medseg.inference import Options, Predictor, run_batch
from medseg.inference.locate import CropRule, Part, find_parts
from medseg.inference.located import LocatedPredictor
from medseg.inference.located_bundle import LocatedBundle
from medseg.inference.roi import IndexBox
from medseg.ingest import read_volume
from medseg.pictures import Entry, Layer, around, colour, draw, render, rgb, sheet, view_along, window_of
from medseg.results.case_result import volumes_of

BUNDLE = "hippocampus_mri_segmentation"
MARGINS_MM = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
PANEL_PX = 300
Labels = NDArray[np.integer[Any]]


def main() -> None:
    """Run both stages, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head", type=Path)
    parser.add_argument("locator", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--crops", type=Path)
    asked = parser.parse_args()
    run_batch(asked.locator, [asked.head], asked.output)
    first = read_volume(next(asked.output.glob("*_seg.nii.gz")))[0]
    image, geometry, _ = read_volume(asked.head)
    bundle = Options(locate=str(asked.locator)).bundle_of(Bundle.open(BUNDLE))
    assert isinstance(bundle, LocatedBundle)
    rule = CropRule.of(bundle.locating.margin_mm, bundle.training_range)
    located = find_parts(first, geometry, bundle.wanted, rule, sides=True)
    whole = MetaTensor(image.astype(np.float32)[None], affine=np.array(geometry.affine))
    found = LocatedPredictor(bundle, "cpu", "fp32").label({"image": whole}, located)
    print(f"margin {bundle.locating.margin_mm:g} mm, {found.note}")
    for part in found.parts:
        verdict = part.trust and (part.trust.decision, part.trust.flags, part.trust.predicted_dice)
        print(f"{part.name}: crop {part.low} to {part.high}, mirrored {part.mirrored}, verdict {verdict}")
    for one in volumes_of(found.label_map, geometry, bundle.scheme):
        print(f"  {one.label} {one.name}: {one.volume_ml:.2f} ml")
    print("\n| margin, mm | side | shown | crop, voxels | located, ml | labelled, ml | Dice of both |")
    print("| --- " * 7 + "|")
    for row in _rows(whole, geometry, first, bundle):
        print("| " + " | ".join(row) + " |")
    if asked.crops:
        _training_crops(asked.crops)
    if asked.picture:
        inside = np.isin(first, [value for values, _ in bundle.wanted for value in values])
        Image.fromarray(_picture(image, found.label_map, inside, geometry, bundle.labels)).save(asked.picture)


def _rows(whole: MetaTensor, geometry: Geometry, first: Labels, bundle: LocatedBundle) -> Iterator[list[str]]:
    predictor = Predictor(bundle.plain, "cpu", "fp32", trust=False)
    inside = np.isin(first, [value for values, _ in bundle.wanted for value in values])
    for margin in MARGINS_MM:
        rule = CropRule.of(margin, bundle.training_range)
        found = find_parts(first, geometry, bundle.wanted, rule, sides=True)
        for part, crop in zip(found.parts, found.crops, strict=True):
            for mirrored in (False, True):
                labels = _labelled(predictor, whole, crop, geometry, mirrored=mirrored)
                yield _row(margin, part, crop, labels, inside[crop.slices], geometry.voxel_volume_mm3, mirrored)


def _training_crops(folder: Path) -> None:
    predictor = Predictor(BUNDLE, "cpu", "fp32")
    for mirrored in (False, True):
        scores, verdicts = [], []
        for path in sorted((folder / "imagesTr").glob("hippocampus_*.nii.gz"))[::17]:
            (image, geometry, _), truth = read_volume(path), read_volume(folder / "labelsTr" / path.name)[0]
            step = -1 if mirrored else 1
            seen = np.ascontiguousarray(image[::step], dtype=np.float32)  # their first axis runs to the right
            found = predictor.predict(MetaTensor(seen[None], affine=np.array(geometry.affine)))
            scores.append(
                [one.dice or 0.0 for one in evaluate_case(found.label_map[::step], truth, (1.0, 1.0, 1.0), (1, 2))]
            )
            verdicts.append(found.verdict.decision if found.verdict else "none")
        dice = ", ".join(f"{value:.3f}" for value in np.mean(scores, axis=0))
        print(f"training crops {'mirrored' if mirrored else 'as they are'}: Dice {dice}; {dict(Counter(verdicts))}")


def _labelled(predictor: Predictor, image: MetaTensor, crop: IndexBox, geometry: Geometry, *, mirrored: bool) -> Labels:
    axis, part = ras_axes(geometry)[0], crop.crop(image)
    if not mirrored:
        return predictor.predict(part).label_map
    turned = MetaTensor(part.as_tensor().flip(axis + 1), affine=part.affine)
    return np.flip(predictor.predict(turned).label_map, axis)


def _row(
    margin: float, part: Part, crop: IndexBox, labels: Labels, inside: NDArray[np.bool_], voxel: float, mirrored: bool
) -> list[str]:
    found = labels > 0
    dice = 2 * int((found & inside).sum()) / max(int(found.sum()) + int(inside.sum()), 1)
    size = "×".join(str(b - a) for a, b in zip(crop.low, crop.high, strict=True))
    located, labelled = (f"{count * voxel / 1000:.2f}" for count in (part.voxels, np.count_nonzero(found)))
    shown = "mirrored" if mirrored else "as it is"
    return [f"{margin:g}", str(part.side), shown, size, located, labelled, f"{dice:.3f}"]


def _picture(
    image: NDArray[Any], found: Labels, inside: NDArray[np.bool_], geometry: Geometry, names: dict[int, str]
) -> NDArray[np.uint8]:
    """Three planes: the labels of the second stage in colours, what the first has found dashed."""
    colours = {value: rgb(colour(number)) for number, value in enumerate(names)}
    panels = []
    for axis in range(3):
        view = view_along(geometry.affine, axis)
        index = int(np.count_nonzero(found, axis=tuple(a for a in range(3) if a != axis)).argmax())
        labels, first, grey = (np.take(volume, index, axis) for volume in (found, inside, image))
        box = around(view.upright(np.any((found > 0) | inside, axis=axis)), view.pixel_mm)
        layers = [Layer(labels), Layer(first.astype(np.uint8), dashed=True)]
        panel = draw(view, grey, layers, number=index + 1, longest_px=PANEL_PX, box=box, window=window_of(image))
        panels.append(render(panel, colours, f"{view.plane} {index + 1}"))
    legend = [*(Entry(colours[value], name) for value, name in names.items()), Entry(None, "found by the first stage")]
    return sheet([("Both hippocampi of a whole head, in two stages", panels)], legend)


if __name__ == "__main__":
    main()
