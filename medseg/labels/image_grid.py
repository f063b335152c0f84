"""The image that labels belong to: its grid, and by which hashes DICOM objects that refer to it know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.geometry import Geometry
from medseg.ingest.read import Source, read_grid

SERIES, FRAME_OF_REFERENCE = "series_uid_hash", "frame_of_reference_hash"
"""Keys of a volume's facts, and of the meta data of a loaded one."""


@dataclass(frozen=True)
class ImageGrid:
    """An image without its pixels."""

    geometry: Geometry  # the grid: voxel index → mm, RAS+
    series: str = ""
    frame_of_reference: str = ""
    """``series``, ``frame_of_reference``: SHA-256 of its SeriesInstanceUID and FrameOfReferenceUID; empty where it is
    no DICOM image, or says none."""

    @classmethod
    def of(cls, source: Source) -> ImageGrid:
        """The grid of what :func:`medseg.ingest.read_volume` reads, from headers alone; raises what that raises."""
        return cls.of_facts(*read_grid(source))

    @classmethod
    def of_facts(cls, geometry: Geometry, facts: Mapping[str, Any]) -> ImageGrid:
        """The grid of a volume that is read already, with its facts."""
        return cls(geometry, str(facts.get(SERIES) or ""), str(facts.get(FRAME_OF_REFERENCE) or ""))
