"""Label maps from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medseg import labels
from medseg.geometry import Geometry

__all__ = ["read_label_map"]


def read_label_map(path: Path, mapping: Mapping[int, int] | None = None) -> tuple[NDArray[Any], Geometry]:
    """The labels (axes i, j, k) and the grid of a label map; see :func:`medseg.labels.read_label_map`.

    Raises
    ------
    Refusal
        What makes it no label map; ``unreadable`` if the file is missing, so that one missing file does not stop the
        other cases.
    """
    found = labels.read_label_map(path, mapping=mapping)
    return found.array, found.geometry
