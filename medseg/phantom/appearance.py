"""From tissues to what a scanner would show: intensities, blur, bias field, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.phantom.anatomy import Waves
from medseg.phantom.catalogue import TISSUES

__all__ = ["LIMITS", "Appearance", "Kind", "draw_appearance"]

Kind = Literal["ct", "mr"]

LIMITS: dict[Kind, tuple[int, int]] = {"ct": (-1024, 3071), "mr": (0, 4095)}
"""Smallest and largest value: what twelve stored bits hold."""

_TRUNCATE = 3.0
_BIAS_LENGTH_MM = 220.0
_NOISE_GRAIN_VOXELS = 0.6


@dataclass(frozen=True)
class Appearance:
    """How one patient looks in one scanner.

    Parameters
    ----------
    kind
        ``"ct"`` (Gaussian, slightly grainy noise) or ``"mr"`` (bias field, Rician noise).
    means
        Intensity by tissue index, in HU or arbitrary units.
    bias
        Logarithm of the bias field, over mm; amplitude 0 for CT.
    noise
        Standard deviation of the noise, in the image's units.
    """

    kind: Kind
    means: NDArray[np.float32]
    bias: Waves
    noise: float

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

    Parameters
    ----------
    random
        The only source of randomness.
    kind
        ``"ct"`` or ``"mr"``.
    noise
        Factor on the usual amount of noise; 0 for none.
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
