"""Dictionary transforms that MONAI lacks."""

from medseg.transforms.load import LoadVolume, LoadVolumed
from medseg.transforms.spatial import RandSpatiald, SpatialDraw

__all__ = ["LoadVolume", "LoadVolumed", "RandSpatiald", "SpatialDraw"]
