"""What a label file holds: its grid and how much of each label, read once and reused by splitting and auditing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.ingest import read_volume

__all__ = ["LabelContent", "count_values", "label_content"]


@dataclass(frozen=True)
class LabelContent:
    """A label map in numbers.

    Parameters
    ----------
    geometry
        Its grid.
    voxels
        Number of voxels of each value that occurs, background included.
    fractional
        Number of voxels whose value is not a whole number (a label map that was interpolated).
    """

    geometry: Geometry
    voxels: dict[int, int]
    fractional: int = 0

    @property
    def volumes_ml(self) -> dict[int, float]:
        """Volume of each value that occurs, background left out, in ml."""
        millilitres = self.geometry.voxel_volume_mm3 / 1000.0
        return {value: count * millilitres for value, count in self.voxels.items() if value != 0}


def label_content(path: Path) -> LabelContent:
    """Read a label map's grid and voxel counts.

    Raises
    ------
    UsageError
        If the file does not exist.
    Refusal
        If it is not a readable 3D volume with sound geometry.
    """
    if not path.exists():
        raise UsageError(f"cannot find the label {path}; check the manifest's dataset_dir or give --dataset-dir")
    array, geometry, _ = read_volume(path)
    voxels, fractional = count_values(array)
    return LabelContent(geometry, voxels, fractional)


def count_values(array: NDArray[Any]) -> tuple[dict[int, int], int]:
    """Voxels per whole-number value, and the number of voxels that hold no whole number."""
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.isfinite(array) & (array == np.rint(array))
        fractional = int(array.size - np.count_nonzero(whole))
        array = array[whole].astype(np.int64)
    else:
        fractional = 0
    values, counts = np.unique(array, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}, fractional
