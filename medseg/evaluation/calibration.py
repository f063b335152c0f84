"""Whether probabilities are right: of voxels given 0.8, eight in ten should belong to the structure.

Sources: Guo et al., *On calibration of modern neural networks*, ICML 2017, for the expected calibration error (ECE);
Nixon et al., *Measuring calibration in deep learning*, CVPR workshops 2019, for the adaptive one (ACE); Maier-Hein et
al., *Metrics reloaded*, Nature Methods 21 (2024), for their use.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry

BINS = 15
"""Bins of equal width (ECE) or of equal numbers of voxels (ACE)."""

LEVELS = 1000
"""Probabilities are counted in steps of a thousandth."""

_ROUNDING = 1e-3
"""How far outside 0 to 1 a stored probability may lie."""

_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, WrapStructError)
"""What nibabel raises of damaged files."""

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


def expected_calibration_error(counts: NDArray[np.int64]) -> float | None:
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
    return _error(counts, np.minimum(np.arange(LEVELS + 1) * BINS // LEVELS, BINS - 1), weighted=True)


def adaptive_calibration_error(counts: NDArray[np.int64]) -> float | None:
    """The plain mean of the same over bins that hold equally many voxels; those of one probability stay together."""
    total = counts.sum(axis=1)
    middle = np.cumsum(total) - total / 2.0
    return _error(counts, np.floor(middle * BINS / max(int(total.sum()), 1)).astype(np.int64), weighted=False)


def _error(counts: NDArray[np.int64], bin_of: NDArray[np.int64], *, weighted: bool) -> float | None:
    size = counts.sum(axis=1)
    if not size.sum():
        return None
    expected = size * (np.arange(LEVELS + 1) / LEVELS)
    voxels, right, likely = (np.bincount(bin_of, of) for of in (size, counts[:, 1], expected))
    used = voxels > 0
    errors = np.abs(right - likely)[used] / voxels[used]
    return float(np.average(errors, weights=voxels[used] if weighted else None))


def probabilities_beside(label_map: Path) -> Path | None:
    """The probabilities that ``medseg infer`` wrote beside a label map; None if there are none."""
    for end, other in _NAMES:
        if label_map.name.endswith(end):
            path = label_map.with_name(label_map.name.removesuffix(end) + other)
            if path.is_file():
                return path
    return None


@dataclass(frozen=True)
class Probabilities:
    """A 4D file of probabilities: its last axis are the network's channels, as ``medseg infer`` writes them."""

    path: Path
    image: nib.Nifti1Image

    @classmethod
    def open(cls, path: Path) -> Probabilities | None:
        """The file; None for one of another number of axes, which is no such file.

        Raises ``Refusal`` (``undecodable``) if it is damaged.
        """
        try:
            image = nib.Nifti1Image.from_filename(path)
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
        return cls(path, image) if len(image.shape) == 4 else None

    @property
    def geometry(self) -> Geometry:
        """The grid of every channel."""
        return Geometry(self.image.shape[:3], self.image.affine)

    def of(self, values: Sequence[int], regions: Sequence[Sequence[int]]) -> NDArray[np.float32] | None:
        """Probability ``(i, j, k)`` of the structure that has these values in a label map.

        Channels are label values from 0 on, and those of a structure add up. Where there are too few for that they are
        the ``regions`` in this order, each given by its values; one alone is the label 1. None if no channel is the
        structure's: the network does not know it. Raises ``Refusal``: ``undecodable`` if the file is damaged or holds
        no probabilities, ``non-finite`` if NaN or infinity.
        """
        count, wanted = self.image.shape[3], frozenset(values)
        if count > max(value for one in (*regions, values) for value in one):
            return reduce(np.add, map(self._channel, values))
        same = [place for place, region in enumerate(regions) if frozenset(region) == wanted]
        if same and count == len(regions):
            return self._channel(same[0])
        return self._channel(0) if count == 1 and wanted == {1} else None

    def _channel(self, number: int) -> NDArray[np.float32]:
        try:
            found = np.asarray(self.image.dataobj[..., number], dtype=np.float32)
        except _UNREADABLE as error:
            raise _damaged(self.path, error) from error
        if not np.isfinite(found).all():
            raise Refusal("non-finite", f"{self.path.name} holds NaN or infinity; write probabilities from 0 to 1")
        low, high = float(found.min(initial=0.0)), float(found.max(initial=0.0))
        if low < -_ROUNDING or high > 1.0 + _ROUNDING:
            what = f"{self.path.name} holds values from {low:g} to {high:g}, expected probabilities from 0 to 1"
            raise Refusal("undecodable", f"{what}; write them so, or call the file otherwise")
        return found


def _damaged(path: Path, error: Exception) -> Refusal:
    return Refusal("undecodable", f"{path.name} cannot be read: {error}; write it again")
