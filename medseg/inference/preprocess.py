"""One case, checked and through the bundle's own preprocessing; channels that lie on grids of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing

from medseg.bundle import Bundle
from medseg.errors import BundleError, CaseFailed, Refusal
from medseg.geometry import SMALLEST_COVERAGE, Geometry
from medseg.inference.config import InferenceConfig
from medseg.ingest import SeriesRecord
from medseg.resources import max_volume_bytes

Case = Mapping[str, MetaTensor]
"""``image``, and one key per channel that lies on a grid of its own: ``(C, H, W, D)`` with its affine (RAS, mm)."""


def preprocess(case: Case, bundle: Bundle, config: InferenceConfig, modality: str | None = None) -> MetaTensor:
    """Check one case, of a DICOM modality if that is known, and do the bundle's preprocessing.

    Gives the image as the network sees it, ``(C, H, W, D)`` on the network's grid.

    Raises
    ------
    Refusal
        ``channel-mismatch``, ``non-finite``, ``outside-training-range``, ``wrong-modality``, or ``too-large`` once it
        is resampled.
    BundleError
        If the preprocessing gives no image.
    CaseFailed
        If it gives values that are not finite.
    """
    _check(case, bundle, config, modality)
    _check_voxels(case["image"], bundle, config)
    # fresh tensors: transforms append to the trace of what they are given
    first = config.channels.first
    fresh: dict[str, Any] = {
        first if key == "image" else key: MetaTensor(
            image.as_tensor().float(), affine=image.affine, meta={"spatial_shape": np.array(image.shape[1:])}
        )
        for key, image in case.items()
    }
    if first != "image":  # as LoadImaged leaves it beside each channel: a bundle's own code may ask for it
        fresh |= {f"{key}_meta_dict": image.meta for key, image in fresh.items()}
    prepared = config.preprocessing(fresh)
    result = prepared.get("image") if isinstance(prepared, Mapping) else None
    if first != "image" and result is not None:  # a bundle's own concatenation may forget where its voxels lie
        result = _traced_as(result, prepared.get(first))
    if not isinstance(result, MetaTensor):
        raise BundleError(f"preprocessing of {bundle.name} does not give a MetaTensor under the key 'image'")
    if result.device.type != "cpu":  # a bundle may move its images; --device says where windows are computed
        result = result.to("cpu")
    if not _finite(result):
        raise CaseFailed("preprocessing gave values that are not finite (a constant image?)")
    return result


def _traced_as(image: Any, first: Any) -> Any:
    """An image with the trace of the first of its channels, if it has none of its own."""
    done = getattr(image, "applied_operations", None)
    if done or not isinstance(first, MetaTensor) or image.shape[1:] != first.shape[1:]:
        return image
    return MetaTensor(torch.as_tensor(image), meta=first.meta, applied_operations=first.applied_operations)


def geometry_of(image: MetaTensor) -> Geometry:
    """The grid of an image ``(C, H, W, D)``."""
    _, height, width, depth = image.shape
    return Geometry((height, width, depth), np.asarray(image.affine, dtype=np.float64))


def _check(case: Case, bundle: Bundle, config: InferenceConfig, modality: str | None) -> None:
    image, others = case["image"], len(case) - 1
    channels = sum(part.shape[0] for part in case.values())
    if image.ndim != 4 or channels != bundle.input_channels or config.channels.keys != tuple(case):
        raise Refusal(
            "channel-mismatch",
            f"found an image of shape {tuple(image.shape)} and {others} channels on other grids,"
            f" {bundle.name} expects {bundle.input_channels} in all, {len(config.channels.keys) - 1} of them"
            " on other grids; give one file or series per channel",
        )
    bundle.check_range(geometry_of(image), modality)
    if not all(map(_finite, case.values())):
        raise Refusal("non-finite", "the image holds NaN or infinite values; repair or replace the file")


def _check_voxels(image: MetaTensor, bundle: Bundle, config: InferenceConfig) -> None:
    """Refuse a voxel size of the bundle's at which the volume would be larger than any that is read."""
    geometry = geometry_of(image)
    for step in config.preprocessing.flatten().transforms:
        spacing = getattr(step, "spacing_transform", None)
        sizes = np.ravel(spacing.pixdim).astype(float) if isinstance(spacing, Spacing) else np.zeros(0)
        wanted = [size if size > 0 else own for size, own in zip(sizes, geometry.spacing_mm, strict=False)]
        voxels = math.prod(geometry.fov_mm[: len(wanted)]) / math.prod(wanted)
        if voxels * 4 > max_volume_bytes():
            found = "×".join(f"{size:g}" for size in wanted)
            raise Refusal(
                "too-large",
                f"{bundle.name} resamples to a voxel size of {found} mm, which gives {voxels:.2g} voxels here, expected"
                f" at most {max_volume_bytes() // 4}; correct pixdim in the bundle, or crop with --roi",
            )


def _finite(image: MetaTensor) -> bool:
    """Whether every value is: a sum is finite only then. By planes, since torch copies what it sums in float64."""
    planes = image.as_tensor().unbind(1)
    return math.isfinite(sum(plane.sum(dtype=torch.float64).item() for plane in planes))


def check_together(
    records: Sequence[SeriesRecord], grids: Sequence[Geometry], facts: Sequence[Mapping[str, Any]]
) -> str:
    """Refuse channels that cannot be laid over the first one; gives what is worth noting of the others.

    They are of ``mixed-patients``; or a ``geometry-mismatch``: frames of reference differ, a channel covers too little.
    """
    first, notes = records[0], []
    for number, (record, grid, found) in enumerate(zip(records[1:], grids[1:], facts[1:], strict=True), start=2):
        if record.patient_hash and first.patient_hash and record.patient_hash != first.patient_hash:
            raise Refusal("mixed-patients", f"{record.source} is of another patient than the first channel; pair anew")
        share = grids[0].covered_by(grid)
        if share < SMALLEST_COVERAGE:
            raise Refusal(
                "geometry-mismatch",
                f"{record.source} covers {share:.0%} of the first channel's field of view, expected"
                f" {SMALLEST_COVERAGE:.0%} at least; are both of one examination and registered?",
            )
        frames = [str(part.get("frame_of_reference_hash") or "") for part in (facts[0], found)]
        if all(frames) and frames[0] != frames[1]:
            raise Refusal(
                "geometry-mismatch",
                f"{record.source} has another frame of reference than the first channel, so that equal positions are"
                " not the same place; register it to the first channel",
            )
        one_sided = ", and only one of them states its frame of reference" if any(frames) and not all(frames) else ""
        notes.append(f"channel {number} covers {share:.0%} of the first{one_sided}")
    return "; ".join(notes)
