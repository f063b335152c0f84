"""Faults put into images and segmentations on purpose: what trust is taught with and tried on.

Corrected cases alone show what a good result looks like, and little of poor ones. Images are ``(H, W, D)`` with mean 0
and standard deviation 1, probabilities ``(K, H, W, D)`` with the background first. Every fault draws its own strength,
from hardly visible to harmful.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from medseg.transforms.mismatched_pairs import dilated, eroded, warped
from medseg.trust.fit_cases import TrustCase

Floats = NDArray[np.float32]
Fault = Callable[[Floats, np.random.Generator], Floats]


def _noise(image: Floats, rng: np.random.Generator) -> Floats:
    return np.asarray(image + rng.uniform(0.3, 2.5) * rng.standard_normal(image.shape), dtype=np.float32)


def _blur(image: Floats, rng: np.random.Generator) -> Floats:
    return np.asarray(ndimage.gaussian_filter(image, rng.uniform(0.8, 4.0)))


def _motion(image: Floats, rng: np.random.Generator) -> Floats:
    """The patient moves between the lines of k-space, read from one end to the other.

    Every block of lines is from another position. That of the middle, which decides where things are seen, is that of
    the reference (as in Shaw et al., MIDL 2019): a reference is drawn on what is seen.
    """
    axis, strength = int(rng.integers(3)), rng.uniform(0.5, 10.0)
    spectrum = np.fft.fftn(image - image.min())  # magnitudes are not negative
    lines = image.shape[axis]
    position = np.zeros((lines, 3))
    for start in np.sort(rng.integers(0, lines, int(rng.integers(2, 9)))):
        position[start:] = rng.uniform(-1, 1, 3) * strength
    position = np.fft.ifftshift(position - position[lines // 2], axes=0)
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in image.shape), indexing="ij")
    shape = [lines if a == axis else 1 for a in range(3)]
    phase = sum(f * position[:, a].reshape(shape) for a, f in enumerate(frequencies))
    return np.asarray(np.abs(np.fft.ifftn(spectrum * np.exp(-2j * np.pi * phase))))


def _bias(image: Floats, rng: np.random.Generator) -> Floats:
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    field = sum(rng.uniform(-1, 1) * g for g in grid) + sum(rng.uniform(-1, 1) * g * g for g in grid)
    return (image - image.min()) * np.exp(rng.uniform(0.3, 1.5) * np.asarray(field))


def _coarse(image: Floats, rng: np.random.Generator) -> Floats:
    """Thick slices along one axis, or large voxels."""
    factors = np.ones(3)
    axis = int(rng.integers(4))
    factors[slice(None) if axis == 3 else axis] = rng.uniform(1.5, 3.5) if axis == 3 else rng.uniform(2.0, 7.0)
    small = ndimage.zoom(ndimage.gaussian_filter(image, 0.4 * (factors - 1)), 1 / factors, order=1)
    return np.asarray(ndimage.zoom(small, np.array(image.shape) / np.array(small.shape), order=1))


def _gamma(image: Floats, rng: np.random.Generator) -> Floats:
    low, high = image.min(), image.max()
    strength = np.exp(rng.choice([-1, 1]) * rng.uniform(0.3, 1.8))
    return np.asarray(((image - low) / max(high - low, 1e-6)) ** strength)


def _contrast(image: Floats, rng: np.random.Generator) -> Floats:
    """Another sequence: brightness follows another curve, at the strongest the reverse one."""
    low, high = image.min(), image.max()
    knots = np.sort(rng.uniform(0, 1, 5)) if rng.random() < 0.5 else np.sort(rng.uniform(0, 1, 5))[::-1]
    mixed = rng.uniform(0.2, 1.0)
    x = (image - low) / max(high - low, 1e-6)
    return np.asarray((1 - mixed) * x + mixed * np.interp(x, np.linspace(0, 1, 5), knots))


def _normalised(fault: Fault) -> Fault:
    def apply(image: Floats, rng: np.random.Generator) -> Floats:
        changed = np.asarray(fault(image, rng), dtype=np.float64)
        return ((changed - changed.mean()) / max(float(changed.std()), 1e-6)).astype(np.float32)

    return apply


IMAGE_FAULTS: Mapping[str, Fault] = {
    "noise": _normalised(_noise),
    "blur": _normalised(_blur),
    "motion": _normalised(_motion),
    "bias-field": _normalised(_bias),
    "coarse": _normalised(_coarse),
    "gamma": _normalised(_gamma),
    "contrast": _normalised(_contrast),
}
"""Faults of images ``(H, W, D)``; the result has mean 0 and standard deviation 1 again."""


def displaced(
    image: Floats, reference: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Floats, NDArray[np.uint8]]:
    """A wrong crop: the field of view moves away, and what comes into it is empty."""
    shift = np.zeros(3, dtype=int)
    for axis in rng.permutation(3)[: int(rng.integers(1, 3))]:
        shift[axis] = rng.choice([-1, 1]) * int(rng.uniform(0.12, 0.5) * image.shape[axis])
    moved = ndimage.shift(image.astype(np.float64), shift, order=0, cval=float(image.min()))
    moved = (moved - moved.mean()) / max(float(moved.std()), 1e-6)
    return moved.astype(np.float32), ndimage.shift(reference, shift, order=0, cval=0)


def _shift(probabilities: Floats, rng: np.random.Generator) -> Floats:
    direction = rng.standard_normal(3)
    shift = rng.uniform(0.5, 7.0) * direction / np.linalg.norm(direction)
    everywhere = np.broadcast_to(-shift[:, None, None, None], (3, *probabilities.shape[1:]))
    return _each(probabilities, partial(_warped, displacement=everywhere))


def _grey(operation: Callable[[torch.Tensor], torch.Tensor], probabilities: Floats, rng: np.random.Generator) -> Floats:
    """One to three voxels, and a fraction of a step more."""
    whole, part = int(rng.integers(0, 3)), rng.random()

    def apply(structures: Floats) -> Floats:
        changed = torch.from_numpy(structures)
        for _ in range(whole):
            changed = operation(changed)
        return np.asarray(((1 - part) * changed + part * operation(changed)).numpy())

    return _each(probabilities, apply)


def _warp(probabilities: Floats, rng: np.random.Generator) -> Floats:
    """A smooth random displacement of the outline."""
    shape, width = probabilities.shape[1:], rng.uniform(3.0, 6.0)
    strength = rng.uniform(1.0, 5.0)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), width) for _ in range(3)])
    scale = strength / max(float(np.std(field)), 1e-6)
    return _each(probabilities, partial(_warped, displacement=scale * field))


def _warped(structures: Floats, displacement: NDArray[np.float64]) -> Floats:
    field = torch.from_numpy(np.ascontiguousarray(displacement))
    return np.asarray(warped(torch.from_numpy(structures), field, mode="bilinear").numpy())


def _cut(probabilities: Floats, rng: np.random.Generator) -> Floats:
    """A part on one side of a random plane goes missing."""
    total = probabilities[1:].sum(axis=0)
    if total.sum() <= 0:
        return probabilities
    direction = rng.standard_normal(3)
    height = sum(d * g for d, g in zip(direction, np.indices(total.shape), strict=True))
    inside = height[total > 0.5] if (total > 0.5).any() else height.ravel()
    gone = height > np.quantile(inside, rng.uniform(0.3, 0.95))
    return _each(probabilities, lambda p: np.where(gone, 0.02 * p, p))


def _blob(probabilities: Floats, rng: np.random.Generator) -> Floats:
    """A piece where there is none, next to or away from a structure."""
    label = int(rng.integers(1, len(probabilities)))
    centre = [rng.uniform(0.15, 0.85) * n for n in probabilities.shape[1:]]
    radius = rng.uniform(2.5, 7.0, 3)
    grid = np.indices(probabilities.shape[1:])
    distance = np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)))
    added = 1 / (1 + np.exp(-8 * (1 - distance)))
    changed = probabilities * (1 - added)
    changed[label] += added
    return np.asarray(changed, dtype=np.float32)


def _each(probabilities: Floats, change: Callable[[Floats], Floats]) -> Floats:
    """Change the structures ``(K - 1, H, W, D)``; the background gets the rest."""
    changed = np.empty_like(probabilities)
    changed[1:] = np.clip(change(probabilities[1:]), 0.0, 1.0)
    changed[1:] /= np.maximum(changed[1:].sum(axis=0), 1.0)
    changed[0] = 1.0 - changed[1:].sum(axis=0)
    return changed


MASK_FAULTS: Mapping[str, Fault] = {
    "shift": _shift,
    "erode": partial(_grey, eroded),
    "dilate": partial(_grey, dilated),
    "warp": _warp,
    "cut": _cut,
    "blob": _blob,
}
"""Faults of probabilities ``(K, H, W, D)``; the image stays as it is."""


def with_image_faults(image: MetaTensor, rng: np.random.Generator, count: int) -> Iterator[tuple[str, MetaTensor]]:
    """The image with ``count`` different faults: their names, and images ``(C, H, W, D)`` in the same units."""
    for name in rng.choice(sorted(IMAGE_FAULTS), min(count, len(IMAGE_FAULTS)), replace=False):
        channels = []
        for channel in image.as_tensor().numpy():
            mean, spread = float(channel.mean()), max(float(channel.std()), 1e-6)
            changed = IMAGE_FAULTS[str(name)](((channel - mean) / spread).astype(np.float32), rng)
            channels.append(np.asarray(changed, dtype=np.float32) * spread + mean)
        yield str(name), MetaTensor(np.stack(channels).astype(np.float32), affine=image.affine)


def with_mask_faults(case: TrustCase, rng: np.random.Generator, count: int) -> Iterator[TrustCase]:
    """The case with ``count`` different faults of its probabilities; its image stays."""
    for name in rng.choice(sorted(MASK_FAULTS), min(count, len(MASK_FAULTS)), replace=False):
        changed = MASK_FAULTS[str(name)](case.crop.probabilities.numpy(), rng)
        probabilities = torch.from_numpy(np.asarray(changed, dtype=np.float32))
        yield replace(case, crop=replace(case.crop, probabilities=probabilities), fault=str(name), measured=None)
