"""Dictionary transforms that MONAI lacks."""

from medseg.transforms.base import RandLatentd
from medseg.transforms.corruptions import GrainDraw, MissingSlices, RandGraind, RandMissingSlicesd
from medseg.transforms.known_labels import KnownLabelsd
from medseg.transforms.load import LoadVolume, LoadVolumed
from medseg.transforms.load_labels import LoadLabeld
from medseg.transforms.load_pictures import LoadPictured, picture_items
from medseg.transforms.mismatched_pairs import KINDS, Mismatch, MismatchedPairs
from medseg.transforms.nnunet import NNUNetPreprocessd
from medseg.transforms.spatial import RandSpatiald, SpatialDraw

__all__ = [
    "KINDS",
    "GrainDraw",
    "KnownLabelsd",
    "LoadLabeld",
    "LoadPictured",
    "LoadVolume",
    "LoadVolumed",
    "Mismatch",
    "MismatchedPairs",
    "MissingSlices",
    "NNUNetPreprocessd",
    "RandGraind",
    "RandLatentd",
    "RandMissingSlicesd",
    "RandSpatiald",
    "SpatialDraw",
    "picture_items",
]
