"""Plan a bundle from a fingerprint of the data: every choice with its reason.

Target spacing and the treatment of slices thicker than the pixels follow nnU-Net (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z); patch, batch and width are chosen for a budget of memory and of time on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medseg.errors import UsageError
from medseg.sharing.fingerprint import Fingerprint

__all__ = ["Budget", "Plan", "make_plan"]

_ANISOTROPIC = 2.5  # ratio of spacings from which an axis is pooled less often
_POOLINGS = 4
_EPOCH_ITERATIONS = 50
_VOXELS_PER_SECOND = 250_000  # forward and backward of a U-Net 16 wide with its discriminator, two laptop cores
_OVERHEAD_GB = 1.0
_CT_RANGE = (-1024.0, 3071.0)


@dataclass(frozen=True)
class Budget:
    """What training may cost: memory in GB, and minutes a fold on two CPU cores."""

    memory_gb: float = 4.0
    minutes: float = 20.0


@dataclass(frozen=True)
class Plan:
    """A planned bundle. Axes are left-right, posterior-anterior, inferior-superior.

    ``reasons`` holds (what, choice, why) for ``docs/plan.md``.
    """

    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    width: int
    network: dict[str, Any]
    normalisation: dict[str, Any]
    rotate_range: tuple[float, ...]
    prob_foreground: float
    discriminator_layers: int
    epochs: int
    iterations: int
    warm_up: int
    ramp: int
    reasons: tuple[tuple[str, str, str], ...] = field(default=())


def make_plan(data: Fingerprint, budget: Budget | None = None) -> Plan:
    """Choose spacing, normalisation, network, patch, batch, augmentation and schedule for a data set.

    Raises
    ------
    UsageError
        If the budget is too small for any training.
    """
    budget = budget or Budget()
    reasons: list[tuple[str, str, str]] = []
    spacing = _spacing(data, reasons)
    pools, kernels = _poolings(spacing, _median_shape(data, spacing))
    patch, batch, width = _patch(data, spacing, pools, budget)
    spacing, patch = _coarsen(data, spacing, patch, (pools, budget), reasons)
    covered = _explain_patch(data, spacing, (patch, batch), budget, reasons)
    network = _network(data, width, pools, kernels, reasons)
    total = _iterations(patch, batch, width, budget)
    prob_foreground = _foreground(data, covered, reasons)
    rotate = _rotation(spacing, reasons)
    reasons.append(
        (
            "schedule",
            f"{total} iterations in epochs of {_EPOCH_ITERATIONS}",
            "what the budget of time allows; the generator trains alone for the first 30 %, then the adversarial "
            "weight is ramped up over 20 %",
        )
    )
    return Plan(
        spacing_mm=spacing,
        patch_size=patch,
        batch_size=batch,
        width=width,
        network=network,
        normalisation=_normalisation(data, reasons),
        rotate_range=rotate,
        prob_foreground=prob_foreground,
        discriminator_layers=2 if min(patch) <= 32 else 3,
        epochs=max(1, total // _EPOCH_ITERATIONS),
        iterations=_EPOCH_ITERATIONS,
        warm_up=int(0.3 * total),
        ramp=int(0.2 * total),
        reasons=tuple(reasons),
    )


def _explain_patch(
    data: Fingerprint,
    spacing: Sequence[float],
    chosen: tuple[Sequence[int], int],
    budget: Budget,
    reasons: list[tuple[str, str, str]],
) -> float:
    """Say why patch and batch were chosen; gives the fraction of the median case that a patch covers."""
    patch, batch = chosen
    shape = _median_shape(data, spacing)
    covered = math.prod(min(p / s, 1.0) for p, s in zip(patch, shape, strict=True))
    reasons.append(
        (
            "patch and batch",
            f"{_times(patch)} voxels, {batch} at a time",
            f"covers {covered:.0%} of the median case ({_times(shape)} voxels) within {budget.memory_gb:g} GB and "
            f"{budget.minutes:g} minutes a fold on two cores; each side is divisible by its poolings",
        )
    )
    return covered


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)


def _spacing(data: Fingerprint, reasons: list[tuple[str, str, str]]) -> tuple[float, ...]:
    spacing = np.median(data.spacing_mm, axis=0)
    why = "the median of the cases read, so that most are resampled little"
    coarse = int(spacing.argmax())
    if spacing[coarse] >= 3 * spacing.min():
        spacing[coarse] = max(np.percentile(data.spacing_mm[:, coarse], 10), spacing.min())
        why += "; along the thick slices the 10th percentile, so that thinner ones keep their detail"
    chosen = tuple(round(float(value), 3) for value in spacing)
    reasons.append(("spacing", f"{_times(chosen)} mm", why))
    return chosen


def _median_shape(data: Fingerprint, spacing: Sequence[float]) -> tuple[int, ...]:
    return tuple(max(1, round(float(value))) for value in np.median(data.extent_mm, axis=0) / np.array(spacing))


def _poolings(spacing: Sequence[float], shape: Sequence[int]) -> tuple[tuple[int, ...], list[list[int]]]:
    """How often each axis is halved, and the kernel of each level: an axis with thick slices waits for the others."""
    pools = [0, 0, 0]
    kernels: list[list[int]] = []
    for _ in range(_POOLINGS + 1):
        now = [size * 2**count for size, count in zip(spacing, pools, strict=True)]
        kernels.append([3 if size < _ANISOTROPIC * min(now) else 1 for size in now])
        if len(kernels) <= _POOLINGS:
            for axis in range(3):
                if kernels[-1][axis] == 3 and (shape[axis] >= 8 * 2 ** pools[axis] or len(set(spacing)) == 1):
                    pools[axis] += 1
    return tuple(pools), kernels


def _bytes_per_voxel(data: Fingerprint, width: int) -> float:
    """Activations kept for the backward pass: about 20 maps of the first width, the loss, the discriminator."""
    return 4.0 * (20 * width + 6 * (len(data.labels) + 1) + 40)


def _most_voxels(data: Fingerprint, width: int, budget: Budget) -> float:
    memory = max(0.0, budget.memory_gb - _OVERHEAD_GB) * 1e9 / _bytes_per_voxel(data, width)
    seconds = budget.minutes * 60 / 1500  # iterations that a small network needs at least
    return min(memory, seconds * _VOXELS_PER_SECOND * (16 / width) ** 1.5)


def _patch(
    data: Fingerprint, spacing: Sequence[float], pools: Sequence[int], budget: Budget
) -> tuple[tuple[int, ...], int, int]:
    """Patch, batch and width: the widest network whose patch sees at least an eighth of the median case."""
    shape = _median_shape(data, spacing)
    for width in (16, 8):
        most = _most_voxels(data, width, budget)
        patch = _fit(shape, pools, most / 2)
        if math.prod(patch) >= math.prod(shape) / 8 or width == 8:
            break
    if math.prod(patch) * 2 > 1.05 * most:
        raise UsageError(
            f"two patches of {_times(patch)} voxels do not fit into {budget.memory_gb:g} GB and "
            f"{budget.minutes:g} minutes; give a larger budget"
        )
    return patch, min(4, max(2, int(most / math.prod(patch)))), width


def _fit(shape: Sequence[int], pools: Sequence[int], most: float) -> tuple[int, ...]:
    """Largest patch of at most ``most`` voxels with the proportions of ``shape``."""
    steps = [2**count for count in pools]
    patch = [
        max(2 * step if step > 1 else 1, math.ceil(size / step) * step) for size, step in zip(shape, steps, strict=True)
    ]
    smallest = [2 * step if step > 1 else min(4, size) for size, step in zip(patch, steps, strict=True)]
    while math.prod(patch) > most:
        free = [axis for axis in range(3) if patch[axis] - steps[axis] >= smallest[axis]]
        if not free:
            break
        axis = max(free, key=lambda axis: patch[axis] / shape[axis] + patch[axis] / 1e6)
        patch[axis] -= steps[axis]
    return tuple(patch)


def _coarsen(
    data: Fingerprint,
    spacing: tuple[float, ...],
    patch: tuple[int, ...],
    limits: tuple[Sequence[int], Budget],
    reasons: list[tuple[str, str, str]],
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Larger voxels if the patch sees less than a 27th of a case; the smallest structure keeps at least 200."""
    pools, budget = limits
    smallest_ml = min(data.structure_ml.values(), default=0.0)
    original = spacing
    while math.prod(patch) < math.prod(_median_shape(data, spacing)) / 27:
        fine = min(spacing)
        coarser = tuple(round(value * 1.15, 3) if value < 1.5 * fine else value for value in spacing)
        if smallest_ml * 1000 / math.prod(coarser) < 200:
            break
        spacing = coarser
        patch, _, _ = _patch(data, spacing, pools, budget)
    if spacing != original:
        why = "with the original voxels a patch would see less than a 27th of a case; the smallest structure still has "
        voxels = smallest_ml * 1000 / math.prod(spacing)
        reasons.append(("coarser voxels", f"{_times(spacing)} mm", f"{why}{voxels:.0f} voxels"))
    return spacing, patch


def _network(
    data: Fingerprint, width: int, pools: Sequence[int], kernels: list[list[int]], reasons: list[tuple[str, str, str]]
) -> dict[str, Any]:
    common = {"spatial_dims": 3, "in_channels": data.channels, "out_channels": len(data.labels) + 1}
    act = ["LeakyReLU", {"negative_slope": 0.1, "inplace": True}]
    if set(pools) == {_POOLINGS}:
        features = [width, width, 2 * width, 4 * width, 8 * width, width]
        why = (
            f"all axes are alike enough to be halved {_POOLINGS} times; {width} maps at full resolution fit the budget"
        )
        reasons.append(("network", "BasicUNet", why))
        return {"_target_": "BasicUNet", **common, "features": features, "act": act, "norm": "batch", "bias": False}
    halved = [0, 0, 0]
    strides = [[1, 1, 1]]
    for level in range(max(pools)):
        strides.append([2 if pools[axis] - halved[axis] >= max(pools) - level else 1 for axis in range(3)])
        halved = [count + (stride == 2) for count, stride in zip(halved, strides[-1], strict=True)]
    why = f"the axes are halved {_times(pools)} times: thick slices are left alone until the pixels are as large"
    reasons.append(("network", "DynUNet", why))
    return {
        "_target_": "DynUNet",
        **common,
        "kernel_size": kernels[: len(strides)],
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": [min(width * 2**level, 16 * width) for level in range(len(strides))],
        "norm_name": "batch",
        "act_name": act,
    }


def _normalisation(data: Fingerprint, reasons: list[tuple[str, str, str]]) -> dict[str, Any]:
    if set(data.modality) == {"CT"}:
        low = max(_CT_RANGE[0], min(i.low for i in data.intensity))
        high = min(_CT_RANGE[1], max(i.high for i in data.intensity))
        why = "CT numbers have a fixed meaning: percentiles 0.5 to 99.5 inside the structures become -1 to 1"
        reasons.append(("normalisation", f"{low:.0f} to {high:.0f} HU", why))
        return {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": round(low, 1), "a_max": round(high, 1),
                "b_min": -1.0, "b_max": 1.0, "clip": True}  # fmt: skip
    nonzero = data.zero_fraction > 0.25
    why = "the scale of the intensities differs from case to case, so each channel of each case is normalised alone"
    if nonzero:
        why += f"; {data.zero_fraction:.0%} of the voxels are exactly 0 (a mask) and are left out"
    reasons.append(("normalisation", "mean 0, standard deviation 1", why))
    return {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True, "nonzero": nonzero}


def _iterations(patch: Sequence[int], batch: int, width: int, budget: Budget) -> int:
    seconds = math.prod(patch) * batch / (_VOXELS_PER_SECOND * (16 / width) ** 1.5)
    wanted = budget.minutes * 60 / seconds
    return int(min(5000, max(500, wanted)) // _EPOCH_ITERATIONS * _EPOCH_ITERATIONS)


def _foreground(data: Fingerprint, covered: float, reasons: list[tuple[str, str, str]]) -> float:
    if covered > 0.9:
        return 0.0
    probability = 0.67 if data.structure_fraction < 0.05 else 0.33
    why = f"the structures fill {data.structure_fraction:.2%} of a case, and most random patches would miss them"
    reasons.append(("patch centres", f"{probability:.0%} on a structure", why))
    return probability


def _rotation(spacing: Sequence[float], reasons: list[tuple[str, str, str]]) -> tuple[float, ...]:
    """Largest rotation about each axis in radians."""
    coarse = int(np.argmax(spacing))
    if spacing[coarse] < _ANISOTROPIC * min(spacing):
        reasons.append(("rotation", "up to 20 degrees about every axis", "patients lie differently"))
        return (0.35, 0.35, 0.35)
    why = "a rotation out of the slices would blur them"
    reasons.append(("rotation", "up to 20 degrees in the slices, 5 out of them", why))
    return tuple(0.35 if axis == coarse else 0.09 for axis in range(3))
