"""Synthetic anatomy: a catalogue of structures as data, and smooth random shapes drawn once per patient.

The frame is the patient's, RAS+ in mm, with the origin in the middle of the upper abdomen. Intensities are Hounsfield
units for CT (portal venous phase) and arbitrary units for MR (T1-weighted); they follow textbook values closely enough
to look right and to make neighbours separable, and no closer.

Each structure is an ellipsoid whose surface is dented by a few long plane waves. Both are sums or products of
functions of one array index each, on any affine grid, so rasterising needs no interpolation, and the same patient
can be imaged at several resolutions and orientations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tissue:
    """Mean intensity of a material, and how much it varies between patients (standard deviation)."""

    hounsfield: float
    mr_units: float
    spread: float = 8.0


class Filling(IntEnum):
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
    """A labelled structure: an ellipsoid that each patient moves, turns, scales and dents."""

    name: str  # name in label maps
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    """``centre_mm``, ``radii_mm``: typical centre and half axes along right, anterior, superior."""
    tissue: Tissue  # what it is made of


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


Box = tuple[slice, slice, slice]
Floats = NDArray[np.float64]

_FAT_DEPTH = 0.92
_WALL_DEPTH = 0.84
_LESION = next(n for n, structure in enumerate(STRUCTURES) if structure.name == "lesion")
_LIVER = next(n for n, structure in enumerate(STRUCTURES) if structure.name == "liver")


@dataclass(frozen=True)
class Waves:
    """A sum of plane waves ``amplitude · cos(vector · y + phase)``."""

    vectors: Floats
    phases: Floats
    amplitude: float

    def sample(self, matrix: Floats, offset: Floats, indices: list[Floats]) -> NDArray[np.float32]:
        """Values on the grid ``y = matrix · index + offset``; array axes are (k, j, i)."""
        total = np.zeros([len(index) for index in reversed(indices)], dtype=np.float32)
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            slopes = vector @ matrix
            turns = [np.exp(1j * slope * index) for slope, index in zip(slopes, indices, strict=True)]
            turns[2] = turns[2] * np.exp(1j * (vector @ offset + phase)) * self.amplitude
            plane = (turns[1][:, None] * turns[0]).astype(np.complex64)
            along = turns[2].astype(np.complex64)[:, None, None]
            total += plane.real * along.real
            total -= plane.imag * along.imag
        return total


@dataclass(frozen=True)
class Blob:
    """A dented ellipsoid: ``|y| + waves(y) < 1`` with ``y = shape · (x − centre)``, x in mm (RAS+)."""

    centre_mm: Floats
    shape: Floats
    waves: Waves

    @property
    def reach(self) -> float:
        """Largest ``|y|`` that can lie inside."""
        return 1.0 + self.waves.amplitude * len(self.waves.phases)

    def box(self, affine: Floats, shape: tuple[int, int, int]) -> Box | None:
        """Index ranges along (i, j, k) outside of which the blob cannot be, or None if it misses the grid."""
        to_y = self.shape @ affine[:3, :3]
        centre = np.linalg.solve(affine[:3, :3], self.centre_mm - affine[:3, 3])
        half = self.reach * np.sqrt(np.diag(np.linalg.inv(to_y.T @ to_y)))
        low = np.maximum(np.floor(centre - half), 0).astype(int)
        high = np.minimum(np.ceil(centre + half) + 1, shape).astype(int)
        if (low >= high).any():
            return None
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])

    def level(self, affine: Floats, box: Box) -> NDArray[np.float32]:
        """``|y| + waves(y)`` on the voxels of ``box``; array axes are (k, j, i); below 1 is inside."""
        matrix = self.shape @ affine[:3, :3]
        offset = self.shape @ (affine[:3, 3] - self.centre_mm)
        indices = [np.arange(part.start, part.stop, dtype=np.float64) for part in box]
        squares = np.zeros([len(index) for index in reversed(indices)], dtype=np.float32)
        for row, shift in zip(matrix, offset, strict=True):
            plane = (row[1] * indices[1][:, None] + row[0] * indices[0]).astype(np.float32)
            along = (row[2] * indices[2] + shift).astype(np.float32)[:, None, None]
            squares += (plane + along) ** 2
        np.sqrt(squares, out=squares)
        squares += self.waves.sample(matrix, offset, indices)
        return squares


@dataclass(frozen=True)
class Anatomy:
    """One patient: the trunk, unlabelled bowel loops, and one blob per structure (the lesion may be absent)."""

    body: Blob
    bowel: tuple[Blob, ...]
    structures: tuple[Blob | None, ...]

    @property
    def has_lesion(self) -> bool:
        """Whether this patient has a lesion in the liver."""
        return self.structures[_LESION] is not None

    def painted(self) -> Iterator[tuple[int, Blob]]:
        """Tissue index and blob of everything inside the trunk; later ones cover earlier ones."""
        for loop in self.bowel:
            yield int(Filling.BOWEL), loop
        for name in PAINTING_ORDER:
            number = next(n for n, structure in enumerate(STRUCTURES) if structure.name == name)
            blob = self.structures[number]
            if blob is not None:
                yield FIRST_STRUCTURE + number, blob


def rotation(angles_degrees: Floats) -> Floats:
    """Rotation matrix about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_degrees)):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def _draw_waves(random: np.random.Generator, count: int, amplitude: float) -> Waves:
    directions = random.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = random.uniform(2.0, 4.0, size=(count, 1))
    return Waves(directions * lengths, random.uniform(0, 2 * np.pi, count), amplitude)


def _draw_blob(random: np.random.Generator, centre_mm: Floats, radii_mm: Floats) -> Blob:
    radii = radii_mm * random.uniform(0.87, 1.13, 3)
    turn = rotation(random.uniform(-10, 10, 3)) if radii.max() < 200 else np.eye(3)
    return Blob(centre_mm, np.diag(1 / radii) @ turn, _draw_waves(random, 3, 0.05))


def _draw_structure(random: np.random.Generator, structure: Structure, scale: Floats) -> Blob:
    jitter = random.uniform(-1, 1, 3) * (7, 6, 9)
    return _draw_blob(random, np.array(structure.centre_mm) * scale + jitter, np.array(structure.radii_mm) * scale)


def _draw_lesion(random: np.random.Generator, liver: Blob) -> Blob:
    direction = random.normal(size=3)
    inside = direction / np.linalg.norm(direction) * random.uniform(0.1, 0.5)
    centre = liver.centre_mm + np.linalg.solve(liver.shape, inside)
    return _draw_blob(random, centre, np.array(STRUCTURES[_LESION].radii_mm) * random.uniform(0.8, 1.25))


def draw_anatomy(random: np.random.Generator, lesion: bool | None = None) -> Anatomy:
    """Draw one patient.

    ``random``: the only source of randomness; the same state gives the same patient. ``lesion``: True or False to
    decide, None for three patients in five.
    """
    scale = np.array([1.0, 1.0, 1.0]) * random.uniform(0.92, 1.06) * random.uniform(0.96, 1.04, 3)
    has_lesion = bool(random.random() < 0.6) if lesion is None else lesion
    body = Blob(np.zeros(3), np.diag(1 / (np.array(BODY_RADII_MM) * scale)), _draw_waves(random, 3, 0.015))
    low, high = np.array([-80, -30, -110]) * scale, np.array([80, 60, 10]) * scale
    bowel = tuple(
        _draw_blob(random, random.uniform(low, high), random.uniform(14, 26, 3) * scale) for _ in range(BOWEL_LOOPS)
    )
    structures: list[Blob | None] = [_draw_structure(random, structure, scale) for structure in STRUCTURES]
    liver = structures[_LIVER]
    assert liver is not None
    structures[_LESION] = _draw_lesion(random, liver) if has_lesion else None
    return Anatomy(body, bowel, tuple(structures))


def rasterise(
    anatomy: Anatomy, affine: Floats, shape: tuple[int, int, int], start: int, stop: int
) -> NDArray[np.uint8]:
    """Tissue index of every voxel of the slices ``start:stop``; array axes are (k, j, i)."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 2] * start
    slab_shape = (shape[0], shape[1], stop - start)
    depth = anatomy.body.level(moved, (slice(0, shape[0]), slice(0, shape[1]), slice(0, stop - start)))
    tissue = np.full(depth.shape, Filling.OUTSIDE, dtype=np.uint8)
    tissue[depth < 1] = Filling.FAT
    tissue[depth < _FAT_DEPTH] = Filling.MUSCLE
    inside = depth < _WALL_DEPTH
    tissue[inside] = Filling.VISCERAL
    for index, blob in anatomy.painted():
        box = blob.box(moved, slab_shape)
        if box is None:
            continue
        part = (box[2], box[1], box[0])
        where = (blob.level(moved, box) < 1) & inside[part]
        if index == FIRST_STRUCTURE + _LESION:
            where &= tissue[part] == FIRST_STRUCTURE + _LIVER
        tissue[part][where] = index
    return tissue
