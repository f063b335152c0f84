"""Where the cases of a dataset lie in the patient, and what they are called, for the pictures of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Orientationd, Spacing, Spacingd
from numpy.typing import NDArray
from PIL import Image

from medseg.files import atomic_path
from medseg.ingest import case_id_of
from medseg.ingest.names import image_kind

__all__ = ["affine_of", "case_name", "save_picture"]

_DIRECTIONS = {
    **dict(zip("RAS", np.eye(3), strict=True)),
    **dict(zip("LPI", -np.eye(3), strict=True)),
}


def affine_of(dataset: Any, image: Any) -> NDArray[np.float64] | None:
    """Voxel index → RAS mm of an image of a dataset, without its position where the tensor has lost the affine.

    Training chains drop meta data at their end; what their ``Orientationd`` and ``Spacingd`` have brought the case to
    still holds. None if the chain has neither affine nor orientation.
    """
    if isinstance(image, MetaTensor):
        return np.asarray(image.affine, dtype=np.float64)
    axcodes, pixdim = None, (1.0, 1.0, 1.0)
    for transform in _flat(getattr(dataset, "transform", None)):
        found = getattr(transform, "ornt_transform", transform)
        if isinstance(transform, Orientation | Orientationd) and getattr(found, "axcodes", None):
            axcodes = str("".join(found.axcodes))
        if isinstance(transform, Spacing | Spacingd):
            pixdim = _three(getattr(transform, "spacing_transform", transform).pixdim)
    if axcodes is None or len(axcodes) != 3:
        return None
    affine = np.eye(4)
    for axis, (letter, step) in enumerate(zip(axcodes, pixdim, strict=True)):
        affine[:3, axis] = _DIRECTIONS[letter.upper()] * step
    return affine


def _three(pixdim: Any) -> tuple[float, float, float]:
    steps = [float(step) for step in np.atleast_1d(pixdim)]
    x, y, z = (steps * 3)[:3] if len(steps) == 1 else steps[:3]
    return x, y, z


def _flat(transform: Any) -> Iterator[Any]:
    if isinstance(transform, Compose):
        for part in transform.transforms:
            yield from _flat(part)
    elif transform is not None:
        yield transform


def case_name(dataset: Any, index: int) -> str:
    """The case id of an image file, as in a run; a number for what has no file of its own.

    Names of folders of DICOM files are not used: they may carry a patient's name.
    """
    items = getattr(dataset, "data", ())
    item = items[index] if isinstance(items, Sequence) and index < len(items) else None
    image = item.get("image") if isinstance(item, dict) else None
    first = image[0] if isinstance(image, list | tuple) and image else image
    if isinstance(first, str | Path) and image_kind(first) is not None:
        return case_id_of(first)
    return f"case {index + 1}"


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (height, width, 3) as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial)
