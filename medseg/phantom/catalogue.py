"""What a synthetic patient is made of: structures with their place, size and typical intensity, as data.

The frame is the patient's, RAS+ in mm, with the origin in the middle of the upper abdomen. Intensities are
Hounsfield units for CT (portal venous phase) and arbitrary units for MR (T1-weighted); they follow textbook
values closely enough to look right and to make neighbours separable, and no closer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["BOWEL_LOOPS", "PAINTING_ORDER", "STRUCTURES", "TISSUES", "Structure", "Tissue", "label_names"]


@dataclass(frozen=True)
class Tissue:
    """Mean intensity of a material, and how much it varies between patients (standard deviation)."""

    hounsfield: float
    mr_units: float
    spread: float = 8.0


class _Filling(IntEnum):
    """Materials that are no labelled structure; structures follow from :data:`FIRST_STRUCTURE` on."""

    OUTSIDE = 0
    FAT = 1
    MUSCLE = 2
    VISCERAL = 3
    BOWEL = 4


FIRST_STRUCTURE = 5
"""Tissue index of label 1."""


@dataclass(frozen=True)
class Structure:
    """A labelled structure: an ellipsoid that each patient moves, turns, scales and dents.

    Parameters
    ----------
    name
        Name in label maps.
    centre_mm, radii_mm
        Typical centre and half axes along right, anterior, superior.
    tissue
        What it is made of.
    """

    name: str
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    tissue: Tissue


STRUCTURES: tuple[Structure, ...] = (
    Structure("liver", (60, 12, 32), (70, 66, 56), Tissue(110, 520)),
    Structure("spleen", (-92, -25, 38), (30, 44, 40), Tissue(135, 330)),
    Structure("right_kidney", (62, -52, -45), (28, 25, 48), Tissue(195, 410, 12)),
    Structure("left_kidney", (-62, -52, -32), (28, 25, 48), Tissue(195, 410, 12)),
    Structure("lesion", (60, 12, 32), (19, 19, 19), Tissue(25, 190)),
    Structure("aorta", (-8, -30, 0), (11, 11, 400), Tissue(165, 120)),
    Structure("inferior_vena_cava", (22, -26, 0), (13, 10, 400), Tissue(150, 140)),
    Structure("spine", (0, -66, 0), (23, 22, 500), Tissue(280, 450, 25)),
    Structure("stomach", (-58, 36, 44), (42, 36, 38), Tissue(15, 240)),
    Structure("pancreas", (-8, 6, -2), (58, 15, 15), Tissue(95, 600)),
    Structure("gallbladder", (52, 48, -26), (17, 17, 26), Tissue(5, 160)),
    Structure("right_lung", (76, -5, 140), (56, 78, 90), Tissue(-820, 30, 20)),
    Structure("left_lung", (-78, -5, 140), (52, 78, 90), Tissue(-820, 30, 20)),
    Structure("heart", (-14, 28, 122), (46, 40, 42), Tissue(140, 260)),
)
"""The structures by label value: label 1 is the first. The first five are the default."""

TISSUES: tuple[Tissue, ...] = (
    Tissue(-1000, 0, 0),
    Tissue(-105, 900, 6),
    Tissue(55, 350),
    Tissue(-65, 640),
    Tissue(30, 300, 15),
    *(structure.tissue for structure in STRUCTURES),
)
"""Material by tissue index: air, fat, muscle, visceral fat, bowel, then the structures."""

PAINTING_ORDER: tuple[str, ...] = (
    "right_lung", "left_lung", "heart", "stomach", "pancreas", "spleen", "liver", "lesion",
    "gallbladder", "left_kidney", "right_kidney", "inferior_vena_cava", "aorta", "spine",
)  # fmt: skip
"""Who gives way to whom: later structures cover earlier ones."""

BODY_RADII_MM = (150.0, 106.0, 420.0)
"""Half axes of the trunk; the third is long, so that the trunk is a slightly barrelled cylinder."""

BOWEL_LOOPS = 7
"""Unlabelled blobs in the abdomen that make the task less easy."""


def label_names(structures: int) -> dict[int, str]:
    """Label value → name of the first ``structures`` structures (background left out)."""
    return {value: structure.name for value, structure in enumerate(STRUCTURES[:structures], start=1)}
