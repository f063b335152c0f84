"""Images that are no crop round a hippocampus: scans of other things, and 1 mm crops of the usual size from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, Spacing
from numpy.typing import NDArray
from torch import nn

from benchmarks.trust_cases import probabilities_of
from medseg.bundle import Bundle
from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import read_volume, scan
from medseg.phantom import make_patient
from medseg.trust.crop import Crop
from medseg.trust.features import case_features
from medseg.trust.out_of_distribution import TrainingStatistics

CROP = (36, 50, 35)
MARGIN_MM = 10.0
HIPPOCAMPI = ((180, 280, 7), (314, 280, 7))
"""Voxels in the middle of both hippocampi of the head, found by eye beside the midbrain; its series share a grid."""


def volumes(shared: Path) -> Iterator[tuple[str, MetaTensor]]:
    """Name and volume of every stranger on its own grid."""
    for record in scan([shared / "brain_mr_dicom"]):
        if record.usable and record.shape and min(record.shape) > 15 and "HCrop" not in record.source:
            array, geometry, _ = read_volume(record)
            yield f"head {record.description}", _tensor(array, geometry)
    for path in sorted((shared / "ibsi_sts" / "nifti").rglob("*.nii.gz")):
        kind = next((k for k in ("MR", "PET") if k.lower() in path.name.lower()), None)
        if kind and "mask" not in path.name.lower():
            array, geometry, _ = read_volume(path)
            yield f"sarcoma {kind} {path.name}", _tensor(array, geometry)
    for seed in range(6):
        phantom = make_patient(seed, kind="ct" if seed % 2 else "mr")
        yield f"phantom {seed}", _tensor(phantom.image, Geometry(phantom.image.shape, phantom.affine))


def _tensor(array: NDArray[Any], geometry: Geometry) -> MetaTensor:
    return MetaTensor(
        torch.from_numpy(np.array(array, dtype=np.float32))[None], affine=torch.from_numpy(np.array(geometry.affine))
    )


def refused(bundle: Bundle, volume: MetaTensor) -> bool:
    """Whether the bundle refuses the whole volume by its grid alone."""
    i, j, k = (int(n) for n in volume.shape[1:])
    try:
        bundle.check_range(Geometry((i, j, k), np.asarray(volume.affine, dtype=np.float64)))
    except Refusal:
        return True
    return False


def crops(volume: MetaTensor, number: int, avoid: Sequence[NDArray[Any]], seed: int) -> Iterator[NDArray[np.float32]]:
    """Random 1 mm crops with something in them, each normalised like a case.

    Parameters
    ----------
    volume
        On its own grid.
    number
        How many.
    avoid
        Points (RAS, mm): crops that hold one of them, or nearly, are left out.
    seed
        Of the positions.
    """
    grid = Compose([Orientation("RAS", labels=None), Spacing((1.0, 1.0, 1.0), mode="bilinear")])(volume)
    values, affine = grid.as_tensor()[0].numpy(), np.asarray(grid.affine, dtype=np.float64)
    rng, found, half = np.random.default_rng(seed), 0, np.array(CROP) / 2
    if any(n < c for n, c in zip(values.shape, CROP, strict=True)):
        return
    floor = np.quantile(values, 0.5)
    for _ in range(200):
        start = np.array([rng.integers(0, n - c + 1) for n, c in zip(values.shape, CROP, strict=True)])
        crop = values[tuple(slice(s, s + c) for s, c in zip(start, CROP, strict=True))]
        inside = [np.linalg.solve(affine, [*point, 1.0])[:3] - start - half for point in avoid]
        holds = any((np.abs(offset) < half + MARGIN_MM).all() for offset in inside)
        if holds or (crop > floor).mean() < 0.2 or crop.std() == 0:
            continue
        yield NormalizeIntensity()(torch.from_numpy(crop.copy())[None]).numpy()[0].astype(np.float32)
        found += 1
        if found == number:
            return


def avoided(name: str, volume: MetaTensor) -> list[NDArray[Any]]:
    """The hippocampi (RAS, mm) of a volume that shows them."""
    affine = np.asarray(volume.affine, dtype=np.float64)
    return [(affine @ [*voxel, 1.0])[:3] for voxel in HIPPOCAMPI] if name.startswith("head") else []


def look(network: nn.Module, reference: TrainingStatistics, crop: NDArray[np.float32]) -> Mapping[str, float]:
    """Distances of one crop from the training cases, and whether a structure is missing."""
    image, probabilities = torch.from_numpy(crop)[None], torch.from_numpy(probabilities_of(network, crop))
    known = case_features(Crop(image, probabilities), None)
    missing = float(any(value == 0 for name, value in known.shape.items() if name.startswith("largest")))
    return {**reference.reinfer(network, known).features, "missing": missing}


def meet(
    bundle: Bundle, judge: tuple[nn.Module, TrainingStatistics], shared: Path, crops_each: int
) -> list[dict[str, Any]]:
    """Look at every stranger: is the whole volume refused, and how far are its crops from the training cases?"""
    found = []
    for number, (name, volume) in enumerate(volumes(shared)):
        chosen = crops(volume, crops_each, avoided(name, volume), number)
        distances = [dict(look(*judge, crop)) for crop in chosen]
        found.append({"name": name, "refused": refused(bundle, volume), "crops": distances})
    return found


def flagged_share(met: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> dict[str, Any]:
    """By kind of stranger: volumes refused, crops flagged."""
    table: dict[str, Any] = {}
    for one in met:
        words = one["name"].split()
        row = table.setdefault(
            " ".join(words[: 1 if words[0] == "phantom" else 2]), {"volumes": 0, "refused": 0, "crops": 0, "flagged": 0}
        )
        row["volumes"] += 1
        row["refused"] += one["refused"]
        row["crops"] += len(one["crops"])
        row["flagged"] += sum(
            any(crop[f"{name}-distance"] > limit for name, limit in limits.items()) or crop["missing"] > 0
            for crop in one["crops"]
        )
    return table
