"""One volume, checked and through the bundle's own preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.errors import BundleError, CaseFailed, Refusal
from medseg.geometry import Geometry
from medseg.inference.config import InferenceConfig, others_of


def prepare(source: MetaTensor, bundle: Bundle, recipe: InferenceConfig, modality: str | None = None) -> MetaTensor:
    """Check one volume and do the bundle's preprocessing.

    Parameters
    ----------
    source
        ``(C, H, W, D)`` with its affine.
    bundle, recipe
        The bundle and what its ``inference.json`` asks for.
    modality
        DICOM modality code, if known.

    Returns
    -------
    MetaTensor
        The image as the network sees it, ``(C, H, W, D)`` on the network's grid.

    Raises
    ------
    Refusal
        ``channel-mismatch``, ``non-finite``, ``outside-training-range`` or ``wrong-modality``.
    BundleError
        If the preprocessing gives no image.
    CaseFailed
        If it gives values that are not finite.
    """
    _check(source, bundle, recipe, modality)
    # fresh tensors: transforms append to the trace of what they are given
    case = {"image": source, **others_of(source)}
    fresh = {key: MetaTensor(image.as_tensor().float(), affine=image.affine) for key, image in case.items()}
    prepared = recipe.preprocessing(fresh)
    result = prepared.get("image") if isinstance(prepared, Mapping) else None
    if not isinstance(result, MetaTensor):
        raise BundleError(f"preprocessing of {bundle.name} does not give a MetaTensor under the key 'image'")
    if not _finite(result):
        raise CaseFailed("preprocessing gave values that are not finite (a constant image?)")
    return result


def geometry_of(image: MetaTensor) -> Geometry:
    """The grid of an image ``(C, H, W, D)``."""
    _, height, width, depth = image.shape
    return Geometry((height, width, depth), np.asarray(image.affine, dtype=np.float64))


def _check(source: MetaTensor, bundle: Bundle, recipe: InferenceConfig, modality: str | None) -> None:
    others = others_of(source)
    channels = source.shape[0] + sum(other.shape[0] for other in others.values())
    if source.ndim != 4 or channels != bundle.input_channels or recipe.keys[1:] != tuple(others):
        raise Refusal(
            "channel-mismatch",
            f"found an image of shape {tuple(source.shape)} and {len(others)} channels on other grids,"
            f" {bundle.name} expects {bundle.input_channels} in all, {len(recipe.keys) - 1} of them"
            " on other grids; give one file or series per channel",
        )
    bundle.check_range(geometry_of(source), modality)
    if not all(_finite(image) for image in (source, *others.values())):
        raise Refusal("non-finite", "the image holds NaN or infinite values; repair or replace the file")


def _finite(image: MetaTensor) -> bool:
    """Whether every value is: a sum is finite only then. By planes, since torch copies what it sums in float64."""
    planes = image.as_tensor().unbind(1)
    return math.isfinite(sum(plane.sum(dtype=torch.float64).item() for plane in planes))
