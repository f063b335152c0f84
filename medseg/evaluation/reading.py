"""Label maps from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import read_volume

__all__ = ["read_label_map"]


def read_label_map(path: Path) -> tuple[NDArray[Any], Geometry]:
    """The array (axes i, j, k) and the grid of a label map.

    Raises
    ------
    Refusal
        What :func:`medseg.ingest.read_volume` refuses; ``unreadable`` if the file is missing, so that one missing
        file does not stop the other cases.
    """
    if not path.is_file():
        raise Refusal("unreadable", f"{path.name} does not exist; correct the datalist or bring the file back")
    try:
        array, geometry, _ = read_volume(path)
    except OSError as error:
        raise Refusal("unreadable", f"{path.name} cannot be read: {error.strerror}") from error
    return array, geometry
