"""Dictionary transforms that MONAI lacks."""

from medseg.transforms.grain import GrainDraw, RandGraind
from medseg.transforms.latent import RandLatentd
from medseg.transforms.load import LoadVolume, LoadVolumed
from medseg.transforms.load_labels import LoadLabeld
from medseg.transforms.missing_slices import MissingSlices, RandMissingSlicesd
from medseg.transforms.spatial import RandSpatiald, SpatialDraw

__all__ = [
    "GrainDraw",
    "LoadLabeld",
    "LoadVolume",
    "LoadVolumed",
    "MissingSlices",
    "RandGraind",
    "RandLatentd",
    "RandMissingSlicesd",
    "RandSpatiald",
    "SpatialDraw",
]
