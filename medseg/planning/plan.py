"""Plan a bundle from a fingerprint of the data: every choice with its reason.

Target spacing and the treatment of slices thicker than the pixels follow nnU-Net (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z); patch, batch and width are chosen for a budget of memory and of time on a CPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import UsageError
from medseg.planning.encoder import Encoder
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.partings import soft_loss, turns

_CT_RANGE = (-1024.0, 3071.0)
_MASKED = 0.25
_ANISOTROPIC = 2.5  # ratio of spacings from which an axis is pooled less often
_POOLINGS = 4
_EPOCH_ITERATIONS = 50
_VOXELS_PER_SECOND = 200_000  # forward and backward of a U-Net 16 wide with its discriminator, two cores (AVX2)
_OVERHEAD_GB = 1.0
_LARGE_STRUCTURE_VOXELS = 5000
_WIDTHS = (16, 8)
_SMALLEST_SEEN = 32  # side of a patch from which an encoder that sees widely has something to see
_Reason = tuple[str, str, str]  # what, choice, why
_EITHER_SIDE = re.compile(r"tumou?r|lesion|sarcoma|metasta|nodule|cysts?\b|gtv|mass\b", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What training may cost: memory in GB, and minutes a fold on two CPU cores."""

    memory_gb: float = 4.0
    minutes: float = 20.0


@dataclass(frozen=True)
class Plan:
    """A planned bundle. Axes are left-right, posterior-anterior, inferior-superior.

    ``keys`` names the data's channels in the transforms: ``image`` for all of them on one grid, else one name each,
    the first of which is ``image``. ``normalisation`` are transforms, one a key. ``flip_axes`` may be mirrored.
    ``soft_loss`` replaces the loss of classes where readers part structures by a slice; else it is empty.
    ``reasons`` holds (what, choice, why) for ``docs/plan.md``.
    """

    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    width: int
    network: dict[str, Any]
    keys: tuple[str, ...]
    normalisation: tuple[dict[str, Any], ...]
    rotate_range: tuple[float, ...]
    shear_range: tuple[float, ...]
    soft_loss: dict[str, Any]
    flip_axes: tuple[int, ...]
    prob_foreground: float
    discriminator_layers: int
    epochs: int
    iterations: int
    warm_up: int
    ramp: int
    reasons: tuple[_Reason, ...]

    @property
    def to_image(self) -> tuple[dict[str, Any], ...]:
        """Transforms that bring all channels onto the first one's grid, scale them, and make one image of them."""
        others = list(self.keys[1:])
        if not others:
            return self.normalisation
        match = {"_target_": "ResampleToMatchd", "keys": others, "key_dst": "image", "mode": "bilinear"}
        return (
            {**match, "padding_mode": "zeros"},
            *self.normalisation,
            {"_target_": "ConcatItemsd", "keys": list(self.keys), "name": "image"},
            {"_target_": "DeleteItemsd", "keys": others},
        )


def make_plan(data: Fingerprint, budget: Budget | None = None, encoder: Encoder | None = None) -> Plan:
    """Choose spacing, normalisation, network, patch, batch, augmentation and schedule for a data set.

    The network is built around ``encoder`` if there is one, else the U-Net that suits the voxels. Raises ``UsageError``
    if the budget is too small for any training.
    """
    budget = budget or Budget()
    reasons: list[_Reason] = []
    grid = _coarsened(data, _grid(data, _spacing(data, reasons), budget, encoder), budget, reasons)
    covered = _explain_patch(data, grid, budget, reasons)
    network = _network(data, grid, reasons)
    total = _iterations(grid, budget)
    prob_foreground = _foreground(data, covered, reasons)
    partings = data.partings if data.fully_known else ()
    rotate, shear = turns(partings, _rotation(grid.spacing_mm, reasons))
    why = "what the budget of time allows; the generator trains alone for the first 30 %, then the adversarial weight"
    what = f"{total} iterations in epochs of {_EPOCH_ITERATIONS}"
    reasons.append(("schedule", what, f"{why} is ramped up over 20 %"))
    _explain_labels(data, reasons)
    keys = _channel_keys(data, reasons)
    channels = [range(data.channels)] if len(keys) == 1 else [range(n, n + 1) for n in range(data.channels)]
    return Plan(
        spacing_mm=grid.spacing_mm,
        patch_size=grid.patch,
        batch_size=grid.batch,
        width=min(grid.width, max(_WIDTHS)),
        network=network,
        keys=keys,
        normalisation=tuple(_scaling(data, some, key, reasons) for some, key in zip(channels, keys, strict=True)),
        rotate_range=rotate,
        shear_range=shear,
        soft_loss=_soft_loss(data, grid, reasons) if partings else {},
        flip_axes=_flips(data, reasons),
        prob_foreground=prob_foreground,
        discriminator_layers=2 if min(grid.patch) <= 32 else 3,
        epochs=max(1, total // _EPOCH_ITERATIONS),
        iterations=_EPOCH_ITERATIONS,
        warm_up=int(0.3 * total),
        ramp=int(0.2 * total),
        reasons=tuple(reasons),
    )


def _explain_labels(data: Fingerprint, reasons: list[_Reason]) -> None:
    if data.scheme.regions:
        why = "they overlap, so each has a sigmoid of its own; a label map is painted in this order"
        reasons.append(("regions", ", ".join(data.scheme.regions), why))
    if data.scheme.ignore is not None:
        why = "nobody judged these voxels: they count in no loss, no metric, and are not shown to the discriminator"
        reasons.append(("ignored", f"the value {data.scheme.ignore}", why))
    if data.partly_annotated:
        why = "the other structures are unknown there, not background (marginal loss, Shi et al. 2021)"
        reasons.append(("partly annotated", f"{data.partly_annotated} of {data.cases} cases", why))


def _channel_keys(data: Fingerprint, reasons: list[_Reason]) -> tuple[str, ...]:
    """Names of the channels in the transforms: one for all on one grid, else one for each."""
    if data.one_grid:
        return ("image",)
    why = (
        "the channels lie on different grids: each is loaded by itself and resampled once, onto the resampled grid of "
        f"the first, which carries the labels; the others cover {data.coverage:.0%} of it at least, and are 0 outside"
    )
    reasons.append(("channels", " and ".join(data.modality), why))
    # a name that begins with "image_" would be taken for meta data of "image" by MONAI's Spacingd
    return ("image", *(f"channel_{number}" for number in range(1, data.channels)))


def _scaling(data: Fingerprint, channels: Sequence[int], key: str, reasons: list[_Reason]) -> dict[str, Any]:
    """The transform that brings channels to one scale."""
    what = "normalisation" if len(channels) == data.channels else f"normalisation of {data.modality[channels[0]]}"
    if {data.modality[number] for number in channels} == {"CT"}:
        low = max(_CT_RANGE[0], min(data.intensity[number].low for number in channels))
        high = min(_CT_RANGE[1], max(data.intensity[number].high for number in channels))
        why = "CT numbers have a fixed meaning: percentiles 0.5 to 99.5 inside the structures become -1 to 1"
        reasons.append((what, f"{low:.0f} to {high:.0f} HU", why))
        limits = {"a_min": round(low, 1), "a_max": round(high, 1), "b_min": -1.0, "b_max": 1.0, "clip": True}
        return {"_target_": "ScaleIntensityRanged", "keys": key, **limits}
    zeros = data.zero_fraction[channels[0]]
    why = "the scale of the intensities differs from case to case, so each channel of each case is normalised alone"
    if data.modality[channels[0]] == "PT":
        why += "; uptake relative to its surroundings needs no units, and tells faint tumours as well as bright ones"
    if zeros > _MASKED:
        why += f"; {zeros:.0%} of the voxels are exactly 0 (a mask) and are left out"
    reasons.append((what, "mean 0, standard deviation 1", why))
    return {"_target_": "NormalizeIntensityd", "keys": key, "channel_wise": True, "nonzero": zeros > _MASKED}


@dataclass(frozen=True)
class _Grid:
    """A spacing and what follows from it: how often each axis is halved, kernels per level, patch, batch, width.

    With an encoder the width is that of the U-Net which costs as much.
    """

    spacing_mm: tuple[float, ...]
    pools: tuple[int, ...]
    kernels: list[list[int]]
    patch: tuple[int, ...]
    batch: int
    width: int
    encoder: Encoder | None


def _grid(data: Fingerprint, spacing: tuple[float, ...], budget: Budget, encoder: Encoder | None) -> _Grid:
    pools, kernels = _poolings(spacing, _median_shape(data, spacing))
    if encoder is not None:
        pools = (encoder.halvings,) * 3
    return _Grid(spacing, pools, kernels, *_patch(data, spacing, pools, budget, encoder), encoder)


def _seen(data: Fingerprint, grid: _Grid) -> float:
    """Voxels of a patch as a share of those of the median case."""
    return math.prod(grid.patch) / math.prod(_median_shape(data, grid.spacing_mm))


def _explain_patch(data: Fingerprint, grid: _Grid, budget: Budget, reasons: list[_Reason]) -> float:
    """Say why patch and batch were chosen; gives the fraction of the median case that a patch covers."""
    shape = _median_shape(data, grid.spacing_mm)
    covered = math.prod(min(p / s, 1.0) for p, s in zip(grid.patch, shape, strict=True))
    why = (
        f"covers {covered:.0%} of the median case ({_times(shape)} voxels) within {budget.memory_gb:g} GB and "
        f"{budget.minutes:g} minutes a fold on two cores; each side is divisible by its poolings"
    )
    reasons.append(("patch and batch", f"{_times(grid.patch)} voxels, {grid.batch} at a time", why))
    return covered


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)


def _spacing(data: Fingerprint, reasons: list[_Reason]) -> tuple[float, ...]:
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


def _most_voxels(data: Fingerprint, width: int, budget: Budget, encoder: Encoder | None) -> float:
    # activations kept for the backward pass: about 20 maps of the first width, the loss, the discriminator
    bytes_per_voxel = 4.0 * (20 * width + 6 * data.outputs + 40)
    weights_gb = 0.0 if encoder is None else 5 * 4e-3 * encoder.parameters  # gradient, two moments, moving average
    memory = max(0.0, budget.memory_gb - _OVERHEAD_GB - weights_gb) * 1e9 / bytes_per_voxel
    seconds = budget.minutes * 60 / 1500  # iterations that a small network needs at least
    return min(memory, seconds * _VOXELS_PER_SECOND * (16 / width) ** 1.5)


def _patch(
    data: Fingerprint, spacing: Sequence[float], pools: Sequence[int], budget: Budget, encoder: Encoder | None
) -> tuple[tuple[int, ...], int, int]:
    """Patch, batch and width: the widest network whose patch sees at least an eighth of the median case."""
    shape = _median_shape(data, spacing)
    for width in _WIDTHS if encoder is None else (encoder.width,):
        most = _most_voxels(data, width, budget, encoder)
        patch = _fit(shape, pools, most / 2, 0 if encoder is None else _SMALLEST_SEEN)
        fits = math.prod(patch) * 2 <= 1.05 * most
        if fits and math.prod(patch) >= math.prod(shape) / 8:
            break
    if not fits:
        raise UsageError(
            f"two patches of {_times(patch)} voxels do not fit into {budget.memory_gb:g} GB and "
            f"{budget.minutes:g} minutes; give a larger budget"
        )
    return patch, min(4, max(2, int(most / math.prod(patch)))), width


def _fit(shape: Sequence[int], pools: Sequence[int], most: float, least: int = 0) -> tuple[int, ...]:
    """Largest patch of at most ``most`` voxels with the proportions of ``shape``; sides are ``least`` if that is given,
    else two voxels of the coarsest level, or more."""
    steps = [2**count for count in pools]
    lowest = [least or (2 * step if step > 1 else 1) for step in steps]
    patch = [max(low, math.ceil(size / step) * step) for size, step, low in zip(shape, steps, lowest, strict=True)]
    smallest = [low if step > 1 else min(4, size) for size, step, low in zip(patch, steps, lowest, strict=True)]
    while math.prod(patch) > most:
        free = [axis for axis in range(3) if patch[axis] - steps[axis] >= smallest[axis]]
        if not free:
            break
        axis = max(free, key=lambda axis: patch[axis] / shape[axis] + patch[axis] / 1e6)
        patch[axis] -= steps[axis]
    return tuple(patch)


def _coarsened(data: Fingerprint, grid: _Grid, budget: Budget, reasons: list[_Reason]) -> _Grid:
    """Larger voxels where a patch sees too little of a case, as long as the smallest structure keeps enough of them.

    Less than a 27th is too little for any structure with 200 voxels; less than a third for large ones, whose borders
    smooth scores place between the voxels and whose insides only their surroundings tell, and these rather get the
    wider network than finer voxels.
    """
    smallest_ml = min(data.structure_ml.values(), default=0.0)
    first = grid
    while True:
        fine = min(grid.spacing_mm)
        coarser = tuple(round(value * 1.15, 3) if value < 1.5 * fine else value for value in grid.spacing_mm)
        voxels, seen = smallest_ml * 1000 / math.prod(coarser), _seen(data, grid)
        enough = seen >= 1 / 3 and grid.width >= max(_WIDTHS)
        if enough or voxels < 200 or (seen >= 1 / 27 and voxels < _LARGE_STRUCTURE_VOXELS):
            break
        grid = _grid(data, coarser, budget, grid.encoder)
    if grid is not first:
        voxels = smallest_ml * 1000 / math.prod(grid.spacing_mm)
        seen = _seen(data, first)
        why = f"with the original voxels a patch would see {seen:.1%} of a case; the smallest structure still has "
        reasons.append(("coarser voxels", f"{_times(grid.spacing_mm)} mm", f"{why}{voxels:.0f} voxels"))
    return grid


def _network(data: Fingerprint, grid: _Grid, reasons: list[_Reason]) -> dict[str, Any]:
    width, pools, kernels = grid.width, grid.pools, grid.kernels
    if grid.encoder is not None:
        network = grid.encoder.network_def(data.channels, data.outputs)
        why = f"the encoder that was asked for, under a new decoder; it halves every axis {grid.encoder.halvings} times"
        reasons.append(("network", f"{network['_target_']}, {grid.encoder.name}", why))
        return network
    common = {"spatial_dims": 3, "in_channels": data.channels, "out_channels": data.outputs}
    act = ["LeakyReLU", {"negative_slope": 0.1, "inplace": True}]
    if set(pools) == {_POOLINGS}:
        features = [width, width, 2 * width, 4 * width, 8 * width, width]
        why = f"all axes are alike and halved {_POOLINGS} times; {width} maps at full resolution fit the budget"
        reasons.append(("network", "BasicUNet", why))
        return {"_target_": "BasicUNet", **common, "features": features, "act": act, "norm": "batch", "bias": False}
    halved = [0, 0, 0]
    strides = [[1, 1, 1]]
    for level in range(max(pools)):
        strides.append([2 if pools[axis] - halved[axis] >= max(pools) - level else 1 for axis in range(3)])
        halved = [count + (stride == 2) for count, stride in zip(halved, strides[-1], strict=True)]
    thick = len({tuple(kernel) for kernel in kernels}) > 1
    rest = "thick slices are left alone until the pixels are as large" if thick else "further, little would be left"
    why = f"the axes are halved {_times(pools)} times: {rest}"
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


def _iterations(grid: _Grid, budget: Budget) -> int:
    seconds = math.prod(grid.patch) * grid.batch / (_VOXELS_PER_SECOND * (16 / grid.width) ** 1.5)
    wanted = budget.minutes * 60 / seconds
    return int(min(5000, max(500, wanted)) // _EPOCH_ITERATIONS * _EPOCH_ITERATIONS)


def _foreground(data: Fingerprint, covered: float, reasons: list[_Reason]) -> float:
    if covered > 0.9:
        return 0.0
    probability = 0.67 if data.structure_fraction < 0.05 else 0.33
    why = f"the structures fill {data.structure_fraction:.2%} of a case, and most random patches would miss them"
    reasons.append(("patch centres", f"{probability:.0%} on a structure", why))
    return probability


def _rotation(spacing: Sequence[float], reasons: list[_Reason]) -> tuple[float, ...]:
    """Largest rotation about each axis in radians."""
    coarse = int(np.argmax(spacing))
    if spacing[coarse] < _ANISOTROPIC * min(spacing):
        reasons.append(("rotation", "up to 20 degrees about every axis", "patients lie differently"))
        return (0.35, 0.35, 0.35)
    why = "a rotation out of the slices would blur them"
    reasons.append(("rotation", "up to 20 degrees in the slices, 5 out of them", why))
    return tuple(0.35 if axis == coarse else 0.09 for axis in range(3))


def _soft_loss(data: Fingerprint, grid: _Grid, reasons: list[_Reason]) -> dict[str, Any]:
    pairs = ", ".join(" and ".join(data.labels[value] for value in one.structures) for one in data.partings)
    why = "a slice of the reader's choice parts them: labels change gradually there, and turns tilt it by 7 degrees"
    reasons.append(("soft borders", pairs, why))
    return soft_loss(data.partings, np.median(data.spacing_mm, axis=0).tolist(), grid.spacing_mm)


def _flips(data: Fingerprint, reasons: list[_Reason]) -> tuple[int, ...]:
    if data.labels and all(_EITHER_SIDE.search(name) for name in data.labels.values()):
        reasons.append(("mirroring", "left and right", "by their names the structures grow on either side alike"))
        return (0,)
    reasons.append(("mirroring", "none", "anatomy has a left and a right"))
    return ()
