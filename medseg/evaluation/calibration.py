"""Whether probabilities are right: of voxels given 0.8, eight in ten should belong to the structure.

Sources: Guo et al., *On calibration of modern neural networks*, ICML 2017, for the expected calibration error (ECE);
Nixon et al., *Measuring calibration in deep learning*, CVPR workshops 2019, for the adaptive one (ACE); Maier-Hein et
al., *Metrics reloaded*, Nature Methods 21 (2024), for their use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry

BINS = 15
"""Bins of equal width (ECE) or of equal numbers of voxels (ACE)."""

LEVELS = 1000
"""Probabilities are counted in steps of a thousandth."""

_NAMES = (("_seg.nii.gz", "_probabilities.nii.gz"), (".nii.gz", "_probabilities.nii.gz"))


def count_levels(probability: NDArray[Any], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels by probability, 0 to 1 in thousandths (rows), and whether they belong to the structure (columns).

    Voxels that are no question are left out: probability 0 and outside the structure. Over a whole image these are
    nearly all, and any network would look calibrated.
    """
    level = np.clip(np.rint(probability * LEVELS), 0, LEVELS).astype(np.int64)
    counts = np.bincount((level * 2 + truth).ravel(), minlength=2 * (LEVELS + 1)).reshape(-1, 2)
    counts[0, 0] = 0
    return counts


def expected_calibration_error(counts: NDArray[np.int64], bins: int = BINS) -> float | None:
    """Mean over bins of equal width of |share that is right − mean probability|, weighted by their voxels.

    ``counts`` are those of :func:`count_levels`; None without any voxel.

    Examples
    --------
    >>> counts = np.zeros((LEVELS + 1, 2), np.int64)
    >>> counts[800] = 40, 60  # given 0.8, and 60 of 100 are right
    >>> counts[100] = 90, 10
    >>> round(expected_calibration_error(counts), 3)
    0.1
    """
    edges = np.minimum(np.arange(LEVELS + 1) * bins // LEVELS, bins - 1)
    return _error(counts, edges.astype(np.float64), weighted=True)


def adaptive_calibration_error(counts: NDArray[np.int64], bins: int = BINS) -> float | None:
    """The plain mean of the same over bins that hold equally many voxels; those of one probability stay together."""
    total = counts.sum(axis=1)
    middle = np.cumsum(total) - total / 2.0
    return _error(counts, np.floor(middle * bins / max(int(total.sum()), 1)), weighted=False)


def _error(counts: NDArray[np.int64], bin_of: NDArray[np.float64], *, weighted: bool) -> float | None:
    size = counts.sum(axis=1)
    if not size.sum():
        return None
    levels = np.arange(LEVELS + 1) / LEVELS
    errors, weights = [], []
    for number in np.unique(bin_of[size > 0]):
        inside = bin_of == number
        voxels = int(size[inside].sum())
        errors.append(abs(float(counts[inside, 1].sum()) - float(levels[inside] @ size[inside])) / voxels)
        weights.append(voxels if weighted else 1)
    return float(np.average(errors, weights=weights))


def probabilities_beside(label_map: Path) -> Path | None:
    """The probabilities that ``medseg infer`` wrote beside a label map; None if there are none."""
    for end, other in _NAMES:
        if label_map.name.endswith(end):
            path = label_map.with_name(label_map.name.removesuffix(end) + other)
            if path.is_file():
                return path
    return None


def read_channel(path: Path, channel: int) -> tuple[NDArray[np.float32], Geometry]:
    """One channel of a 4D NIfTI file, (i, j, k), and its grid.

    Raises
    ------
    Refusal
        ``not-3d`` if the file has no channels or not this one, ``undecodable`` if it is damaged.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        shape = image.shape
        if len(shape) != 4 or channel >= shape[3]:
            raise Refusal("not-3d", f"{path.name} has the shape {shape}, expected four axes and channel {channel}")
        return np.asarray(image.dataobj[..., channel], dtype=np.float32), Geometry(shape[:3], image.affine)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise Refusal("undecodable", f"{path.name} cannot be read: {error}; write it again") from error


def channels_in(path: Path) -> int:
    """How many channels a file of probabilities has; 0 if it is none."""
    try:
        shape = nib.Nifti1Image.from_filename(path).shape
    except (OSError, EOFError, ValueError, ImageFileError):
        return 0
    return int(shape[3]) if len(shape) == 4 else 0
