"""One synthetic patient as arrays: image, label map and affine, with the blur, bias field and noise of a scanner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.phantom.anatomy import (
    FIRST_STRUCTURE,
    STRUCTURES,
    TISSUES,
    Anatomy,
    Waves,
    draw_anatomy,
    label_names,
    rasterise,
    rotation,
)

Kind = Literal["ct", "mr"]

LIMITS: dict[Kind, tuple[int, int]] = {"ct": (-1024, 3071), "mr": (0, 4095)}
"""Smallest and largest value: what twelve stored bits hold."""

_TRUNCATE = 3.0
_BIAS_LENGTH_MM = 220.0
_NOISE_GRAIN_VOXELS = 0.6


@dataclass(frozen=True)
class Appearance:
    """How one patient looks in one scanner."""

    kind: Kind  # ``"ct"`` (Gaussian, slightly grainy noise) or ``"mr"`` (bias field, Rician noise)
    means: NDArray[np.float32]  # intensity by tissue index, in HU or arbitrary units
    bias: Waves  # logarithm of the bias field, over mm; amplitude 0 for CT
    noise: float  # standard deviation of the noise, in the image's units

    @staticmethod
    def blur_voxels(spacing_mm: NDArray[np.float64]) -> tuple[float, float, float]:
        """Standard deviation of the point spread along (k, j, i): the scanner's and the voxel's own size."""
        i, j, k = np.hypot(0.8 / spacing_mm, 0.4)
        return float(k), float(j), float(i)

    @staticmethod
    def halo(spacing_mm: NDArray[np.float64]) -> int:
        """Number of neighbouring slices that the blur of a slice needs."""
        return int(_TRUNCATE * Appearance.blur_voxels(spacing_mm)[0] + 0.5)

    def signal(self, tissue: NDArray[np.uint8], affine: NDArray[np.float64], start: int) -> NDArray[np.float32]:
        """Noise-free image of a slab whose first slice is ``start``; array axes are (k, j, i)."""
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        image = ndimage.gaussian_filter(
            self.means[tissue], self.blur_voxels(spacing_mm), truncate=_TRUNCATE, mode="nearest"
        )
        if self.bias.amplitude:
            indices = [np.arange(n, dtype=np.float64) for n in reversed(tissue.shape)]
            offset = affine[:3, 3] + affine[:3, 2] * start
            image *= np.exp(self.bias.sample(affine[:3, :3], offset, indices))
        return np.asarray(image, dtype=np.float32)

    def add_noise(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """One slice (j, i) with noise: Gaussian with a grain for CT, Rician for MR."""
        if not self.noise:
            return image
        noise = random.standard_normal(image.shape, dtype=np.float32)
        if self.kind == "mr":
            second = random.standard_normal(image.shape, dtype=np.float32)
            return np.asarray(np.hypot(image + self.noise * noise, self.noise * second), dtype=np.float32)
        grain = ndimage.gaussian_filter(noise, _NOISE_GRAIN_VOXELS, mode="wrap", truncate=_TRUNCATE)
        # Sum of squared weights of a separable Gaussian: 1/(2 sigma sqrt(pi)) per axis.
        gain = 2 * _NOISE_GRAIN_VOXELS * np.sqrt(np.pi)
        return np.asarray(image + self.noise * gain * grain, dtype=np.float32)


def draw_appearance(random: np.random.Generator, kind: Kind, noise: float = 1.0) -> Appearance:
    """Draw scanner and tissue variation of one patient.

    ``random``: the only source of randomness. ``kind``: ``"ct"`` or ``"mr"``. ``noise``: factor on the usual amount of
    noise; 0 for none.
    """
    typical = np.array([t.hounsfield if kind == "ct" else t.mr_units for t in TISSUES])
    varied = typical + random.normal(size=len(TISSUES)) * [t.spread for t in TISSUES]
    directions = random.normal(size=(2, 3))
    directions *= 2 * np.pi / (_BIAS_LENGTH_MM * 2) / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = random.uniform(0, 2 * np.pi, 2)
    gain = random.uniform(0.6, 1.6)
    if kind == "ct":
        return Appearance(kind, varied.astype(np.float32), Waves(directions, phases, 0.0), 16.0 * noise)
    means = (np.maximum(varied, 0) * gain).astype(np.float32)
    return Appearance(kind, means, Waves(directions, phases, 0.15), 22.0 * gain * noise)


_FIELD_OF_VIEW_MM = (336.0, 336.0, 216.0)
_MR_OBLIQUE_DEGREES = 8.0
_SLAB_VOXELS = 4_000_000


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient."""

    image: NDArray[np.int16]
    """int16, axes (i, j, k) towards the patient's left, posterior and superior (up to the obliquity); HU or MR
    units."""
    label: NDArray[np.uint8]  # uint8 on the same grid; 0 is background
    affine: NDArray[np.float64]  # 4×4, voxel index → mm, RAS+
    kind: Kind  # ``"ct"`` or ``"mr"``
    seed: int  # what it was made from
    labels: dict[int, str]
    """Label value → structure name, background left out. A lesion may be named and absent."""
    anatomy: Anatomy = field(repr=False, compare=False)
    appearance: Appearance = field(repr=False, compare=False)
    """``anatomy``, ``appearance``: what image and label were made from; they fit any grid."""

    @property
    def geometry(self) -> Geometry:
        """The grid of image and label."""
        return Geometry(self.image.shape, self.affine)

    @property
    def has_lesion(self) -> bool:
        """Whether a lesion is labelled."""
        return any(name == "lesion" and bool((self.label == value).any()) for value, name in self.labels.items())

    def on_grid(self, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Phantom:
        """Make the same patient on another grid, as in another series of the study; the noise is drawn anew."""
        image, label = _render(self.anatomy, self.appearance, affine, shape, self.seed)
        label[label > len(self.labels)] = 0
        return replace(self, image=image.T, label=label.T, affine=affine)


def make_patient(
    seed: int,
    kind: Kind = "ct",
    *,
    shape: tuple[int, int, int] = (64, 64, 40),
    spacing_mm: tuple[float, float, float] | None = None,
    structures: int = 5,
    lesion: bool | None = None,
    oblique_degrees: float | None = None,
    noise: float = 1.0,
) -> Phantom:
    """Make one synthetic patient; the same arguments give the same voxels, and one seed is one anatomy on any grid.

    Parameters
    ----------
    seed
        Non-negative; stands for the patient.
    kind
        ``"ct"`` (Hounsfield units, straight axial) or ``"mr"`` (arbitrary units, bias field, oblique).
    shape
        Voxels along (i, j, k).
    spacing_mm
        Along (i, j, k); by default the shape spans the upper abdomen, give or take 4 %.
    structures
        How many of :data:`medseg.phantom.anatomy.STRUCTURES` are labelled (1 to 14); the others are still visible.
    lesion
        True or False to decide, None for three patients in five.
    oblique_degrees
        Largest rotation of the grid about each axis; by default 0 for CT, 8 for MR.
    noise
        Factor on the usual amount of noise.

    Returns
    -------
    Phantom
        Memory beyond the result is bounded: the volume is made in slabs.

    Raises
    ------
    UsageError
        If an argument is outside what is stated above.
    """
    _check(seed, kind, shape, structures)
    anatomy = draw_anatomy(np.random.default_rng([seed, 0]), lesion)
    look = draw_appearance(np.random.default_rng([seed, 1, kind == "mr"]), kind, noise)
    angles = oblique_degrees if oblique_degrees is not None else (_MR_OBLIQUE_DEGREES if kind == "mr" else 0.0)
    affine = _draw_affine(np.random.default_rng([seed, 2]), shape, spacing_mm, angles)
    image, label = _render(anatomy, look, affine, shape, seed)
    label[label > structures] = 0
    return Phantom(image.T, label.T, affine, kind, seed, label_names(structures), anatomy, look)


def _check(seed: int, kind: str, shape: tuple[int, int, int], structures: int) -> None:
    if seed < 0:
        raise UsageError(f"the seed is {seed}; give a non-negative number")
    if kind not in LIMITS:
        raise UsageError(f"the kind is {kind!r}; expected 'ct' or 'mr'")
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError(f"the shape is {shape}; give three positive sizes")
    if not 1 <= structures <= len(STRUCTURES):
        raise UsageError(f"{structures} structures were asked for; give 1 to {len(STRUCTURES)}")


def _draw_affine(
    random: np.random.Generator,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] | None,
    oblique_degrees: float,
) -> NDArray[np.float64]:
    in_plane, between = random.uniform(0.96, 1.04, 2)
    if spacing_mm is None:
        pixel = _FIELD_OF_VIEW_MM[0] / shape[0] * in_plane
        spacing_mm = (pixel, pixel, _FIELD_OF_VIEW_MM[2] / shape[2] * between)
    turn = rotation(random.uniform(-1, 1, 3) * oblique_degrees)
    centre_mm = random.uniform(-5, 5, 3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    # DICOM writes 16 characters a number; with more digits the DICOM and the NIfTI of a patient would differ.
    return np.asarray(np.round(affine, 9), dtype=np.float64)


def _render(
    anatomy: Anatomy, look: Appearance, affine: NDArray[np.float64], shape: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    slices = shape[2]
    image = np.empty(shape[::-1], dtype=np.int16)
    label = np.empty(shape[::-1], dtype=np.uint8)
    low, high = LIMITS[look.kind]
    halo = look.halo(np.linalg.norm(affine[:3, :3], axis=0))
    step = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, slices, step):
        stop = min(start + step, slices)
        first, last = max(0, start - halo), min(slices, stop + halo)
        tissue = rasterise(anatomy, affine, shape, first, last)
        signal = look.signal(tissue, affine, first)[start - first : stop - first]
        inner = tissue[start - first : stop - first]
        label[start:stop] = np.where(inner >= FIRST_STRUCTURE, inner - (FIRST_STRUCTURE - 1), 0)
        for k, clean in enumerate(signal, start=start):
            noisy = look.add_noise(clean, np.random.default_rng([seed, 3, slices, k]))
            image[k] = np.rint(np.clip(noisy, low, high))
    return image, label
