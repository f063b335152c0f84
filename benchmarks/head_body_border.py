"""How much of the hippocampus bundle's Dice is lost at the border between head and body, and what kind of border it is.

    python -m benchmarks.head_body_border DATA RUNS

reads the references in ``DATA`` and the predictions of ``benchmarks.train_flagship`` in ``RUNS/fold*/predictions``.
It prints in how many references one coronal slice parts the two; by how many slices predictions miss that slice; and
the Dice that they have, would have with the border drawn as one slice, and would have with that of the reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks.train_flagship import BUNDLE

HEAD, BODY = 1, 2
Labels = NDArray[np.int64]


def read(path: Path) -> Labels:
    """A label map ``(x, y, z)``, its axes towards the patient's right, front and top."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).astype(np.int64)


def border(labels: Labels) -> tuple[int, int]:
    """The coronal slice from which on all is head, if few voxels are to change, and how many these are."""
    head, body = ((labels == structure).sum((0, 2)) for structure in (HEAD, BODY))
    wrong = np.concatenate([[0], head.cumsum()]) + body.sum() - np.concatenate([[0], body.cumsum()])
    return int(wrong.argmin()), int(wrong.min())


def redrawn(labels: Labels, first: int) -> Labels:
    """The same foreground, head from a coronal slice on."""
    parts = np.where(np.arange(labels.shape[1]) >= first, HEAD, BODY)
    return np.where(labels > 0, parts[None, :, None], 0)


def dice(found: Labels, reference: Labels) -> float:
    """Mean over both structures."""
    masks = [(found == structure, reference == structure) for structure in (HEAD, BODY)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in masks]))


def main() -> None:
    """Read, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04_Hippocampus")
    parser.add_argument("runs", type=Path)
    options = parser.parse_args()
    items = json.loads((BUNDLE / "configs" / "datalist.json").read_text())["training"]
    references = {
        Path(item["label"]).name.removesuffix(".nii.gz"): read(options.data / item["label"]) for item in items
    }
    changed = np.array([border(labels)[1] for labels in references.values()])
    flat = int((changed == 0).sum())
    print(f"{flat} of {len(changed)} references: one coronal slice parts head and body, no voxel is on the wrong side")
    misses, scores = [], []
    for path in sorted(options.runs.glob("fold*/predictions/*_seg.nii.gz")):
        reference, found = references[path.name.removesuffix("_seg.nii.gz")], read(path)
        (here, _), (there, _) = border(found), border(reference)
        misses.append(here - there)
        scores.append([dice(labels, reference) for labels in (found, redrawn(found, here), redrawn(found, there))])
    if not misses:
        raise SystemExit(f"{options.runs} has no fold*/predictions; run benchmarks.train_flagship first")
    written, straight, given = np.mean(scores, 0)
    print(f"{len(misses)} predictions: off by {np.mean(misses):+.2f} ± {np.std(misses):.2f} slices")
    print(f"Dice {written:.4f}; the border as one slice {straight:.4f}; the reference's slice {given:.4f}")


if __name__ == "__main__":
    main()
