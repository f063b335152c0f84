"""Sliding windows: where they lie, and stitching them in place while memory stays bounded.

Windows, padding and importance map are those of MONAI's ``sliding_window_inference``, so the stitched scores are the
same. What differs is how they are stitched: planes of the first axis that no later window touches are handed on
at once, so that the accumulator is as deep as one window, not as the volume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch.nn import functional

from medseg.errors import CaseFailed, Refusal
from medseg.networks.even_windows import bell, even_starts

_MOST_WINDOWS, _FEW_WINDOWS = 100_000, 4096
"""A whole body of 512×512×1200 voxels takes 2,000 windows of 96³ at an overlap of 0.5, and 71,000 of 32³."""
_MOST_LOOKS = 200
"""An overlap of 0.5 computes each voxel 8 times, one of 0.8 125 times."""
_SMALLEST_WINDOW = 512
_LARGEST_BATCH = 1 << 27
"""Voxels of several windows that are computed at once, half a GiB before the first layer: 60 of 128³."""
_LARGEST_GROWTH, _SMALL_VOXELS = 8, 1 << 21
"""How much larger than the volume, or than 128³ voxels, its windows may be."""

EVEN = "nnunet"
"""The mode of :class:`WindowSettings` that lays windows as nnU-Net does."""

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class WindowSettings:
    """A sliding window.

    ``roi_size`` is in voxels along the three array axes, below 1 the volume's own size; ``overlap`` the fraction of a
    window that the next one repeats, per axis. Overlapping windows are weighted by the ``mode`` ``"constant"`` or
    ``"gaussian"``, whose width ``sigma_scale`` is a fraction of the window. ``batch_size`` windows are computed at
    once; a volume smaller than a window is padded. The mode ``"nnunet"`` spreads windows evenly, at most
    ``1 - overlap`` of one apart, with nnU-Net's weights, and sums in half precision as it does.
    """

    roi_size: tuple[int, ...]
    overlap: tuple[float, ...] = (0.25, 0.25, 0.25)
    mode: str = "constant"
    sigma_scale: float | Sequence[float] = 0.125
    batch_size: int = 1
    padding_mode: str = "constant"
    padding_value: float = 0.0


@dataclass(frozen=True)
class WindowPlan:
    """Windows of one size over one volume, padded to at least one window.

    ``pad_before`` are the planes added in front along each axis; ``starts`` the first voxel of every window, in the
    order in which they are computed (first axis slowest).
    """

    roi_size: tuple[int, ...]
    padded_shape: tuple[int, ...]
    pad_before: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Chunk:
    """Finished planes of the first axis, from the index ``start`` in the unpadded volume on.

    ``scores`` are the stitched network output, float32, ``(C, planes, W, D)``; valid until the next chunk is asked for.
    """

    start: int
    scores: torch.Tensor


def plan_windows(shape: Sequence[int], settings: WindowSettings) -> WindowPlan:
    """Lay the windows of ``settings`` over a volume, exactly as MONAI or nnU-Net does.

    Raises ``Refusal`` (``too-large``) if there are too many of them, or they are far larger than the volume.
    """
    roi = tuple(r if r > 0 else n for r, n in zip(settings.roi_size, shape, strict=True))
    padded = tuple(max(r, n) for r, n in zip(roi, shape, strict=True))
    before = tuple((p - n) // 2 for p, n in zip(padded, shape, strict=True))
    # MONAI's interval: at least one voxel, and the whole axis if one window covers it
    step = [r if r == p else max(int(r * (1 - o)), 1) for r, p, o in zip(roi, padded, settings.overlap, strict=True)]
    _check_cost(roi, padded, step, shape, settings)
    if settings.mode == EVEN:
        places = even_starts(padded, roi, 1 - settings.overlap[0])
        return WindowPlan(roi, padded, before, tuple(itertools.product(*places)))
    windows = dense_patch_slices(padded, roi, step, return_slice=False)
    return WindowPlan(roi, padded, before, tuple(tuple(int(first) for first, _ in window) for window in windows))


def _check_cost(
    roi: Sequence[int], padded: Sequence[int], step: Sequence[int], shape: Sequence[int], settings: WindowSettings
) -> None:
    """Refuse windows that cost far more than a volume is worth, before any of them is laid out."""
    count = math.prod(-(-(p - r) // s) + 1 for r, p, s in zip(roi, padded, step, strict=True))
    voxels, whole = math.prod(roi), math.prod(padded)
    size, looks = "×".join(map(str, roi)), count * voxels / whole
    found = f"windows of {size} voxels with an overlap of {max(settings.overlap):g} on a volume of"
    found = f"{found} {'×'.join(map(str, shape))}: {count} windows, each voxel computed {looks:.0f} times"
    if whole > _LARGEST_GROWTH * max(math.prod(shape), _SMALL_VOXELS):
        raise Refusal("too-large", f"{found}; the windows are too large for the volume, correct roi_size in the bundle")
    if count > _MOST_WINDOWS or (count > _FEW_WINDOWS and (looks > _MOST_LOOKS or voxels < _SMALLEST_WINDOW)):
        raise Refusal(
            "too-large",
            f"{found}; expected at most {_MOST_WINDOWS} windows, {_MOST_LOOKS} times, and windows of at least"
            f" {_SMALLEST_WINDOW} voxels where there are more than {_FEW_WINDOWS}; correct roi_size and overlap in the"
            " bundle, or crop with --roi",
        )
    together = min(settings.batch_size, count // max(1, -(-(padded[0] - roi[0]) // step[0]) + 1))
    if together > 1 and (batch := together * voxels) > _LARGEST_BATCH:
        raise Refusal(
            "too-large",
            f"{found}, {together} at once: {batch} voxels, expected at most {_LARGEST_BATCH}; correct"
            " sw_batch_size in the bundle",
        )


def sliding_window(volume: torch.Tensor, settings: WindowSettings, network: Network) -> Iterator[Chunk]:
    """Run ``network`` over all windows of a volume and hand on the stitched planes as soon as they are final.

    The volume is ``(C, H, W, D)`` float32 on the CPU; the network maps a batch ``(N, C, *roi)`` to scores
    ``(N, K, *roi)``; consecutive chunks together cover the first axis.

    Raises ``Refusal``: as :func:`plan_windows`; ``CaseFailed`` if the network returns a value that is not finite, or
    of another size than its input.
    """
    plan = plan_windows(volume.shape[1:], settings)
    padded = _pad(volume, plan, settings)
    weights = (
        bell(plan.roi_size)
        if settings.mode == EVEN
        else compute_importance_map(plan.roi_size, mode=settings.mode, sigma_scale=settings.sigma_scale)
    )
    height, width, depth = plan.roi_size
    stitcher = _Stitcher(plan, weights, tuple(volume.shape[1:]))
    if len(plan.starts) == 1 and settings.mode == "constant":  # nothing to stitch, and no memory for it
        yield from stitcher.without_padding(_checked(network(padded[None]), plan)[0])
        return
    for first, group in itertools.groupby(plan.starts, key=lambda start: start[0]):
        yield from stitcher.advance(first)
        row = list(group)
        for begin in range(0, len(row), settings.batch_size):
            part = row[begin : begin + settings.batch_size]
            batch = torch.stack([padded[:, i : i + height, j : j + width, k : k + depth] for i, j, k in part])
            stitcher.add(_checked(network(batch), plan), part)
    yield from stitcher.advance(plan.padded_shape[0])


def averaged_windows(volume: torch.Tensor, settings: WindowSettings, networks: Sequence[Network]) -> Iterator[Chunk]:
    """The mean score of several networks, each run over the whole volume, as nnU-Net averages folds: in half precision.

    Takes and gives what :func:`sliding_window` does. All scores are held, in half precision, if there are several.
    """
    if len(networks) == 1:
        yield from sliding_window(volume, settings, networks[0])
        return
    total: torch.Tensor | None = None
    for network in networks:
        scores = torch.cat([chunk.scores.half() for chunk in sliding_window(volume, settings, network)], dim=1)
        total = scores if total is None else total.add_(scores)
    assert total is not None, "there are several networks"
    total /= len(networks)
    for start in range(0, total.shape[1], settings.roi_size[0]):
        yield Chunk(start, total[:, start : start + settings.roi_size[0]].float())


class _Stitcher:
    """Accumulates weighted scores in a buffer as deep as one window, which moves along the first axis."""

    def __init__(self, plan: WindowPlan, weights: torch.Tensor, shape: tuple[int, ...]) -> None:
        self.plan, self.weights, self.shape = plan, weights, shape
        self.first = 0
        self.sums: torch.Tensor | None = None
        self.counts = torch.zeros(plan.roi_size[0], *plan.padded_shape[1:], dtype=weights.dtype)

    def add(self, scores: torch.Tensor, starts: Sequence[tuple[int, ...]]) -> None:
        """Add a batch of window scores ``(N, K, *roi)``, all of which begin at the buffer's first plane."""
        if self.sums is None:
            self.sums = torch.zeros(scores.shape[1], *self.counts.shape, dtype=self.counts.dtype)
        _, width, depth = self.plan.roi_size
        for score, (_, j, k) in zip(scores, starts, strict=True):
            place = self.sums[:, :, j : j + width, k : k + depth]
            if place.dtype == score.dtype:
                place.addcmul_(score, self.weights)
            else:  # in half precision, rounded once
                place += score * self.weights
            self.counts[:, j : j + width, k : k + depth].add_(self.weights)

    def advance(self, to: int) -> Iterator[Chunk]:
        """Hand on the planes before ``to`` and move the buffer there."""
        done = to - self.first
        if done == 0 or self.sums is None:
            return
        ready = self.sums[:, :done]
        ready /= self.counts[:done]
        if ready.dtype == torch.half and not torch.isfinite(ready.sum(dtype=torch.float64)):
            raise CaseFailed("the network's scores are too large for half precision, in which nnU-Net sums them")
        yield from self.without_padding(ready)
        kept = self.counts.shape[0] - done
        for buffer in self.sums.unbind(0) if kept else ():
            buffer[:kept] = buffer[done:].clone()
        if kept:
            self.counts[:kept] = self.counts[done:].clone()
        self.sums[:, kept:] = 0
        self.counts[kept:] = 0
        self.first = to

    def without_padding(self, ready: torch.Tensor) -> Iterator[Chunk]:
        """Finished planes from the buffer's first on, as far as they are of the volume."""
        before, (height, width, depth) = self.plan.pad_before, self.shape
        low = max(self.first, before[0])
        high = min(self.first + ready.shape[1], before[0] + height)
        if low < high:
            inner = ready[:, low - self.first : high - self.first]
            inner = inner[:, :, before[1] : before[1] + width, before[2] : before[2] + depth]
            yield Chunk(low - before[0], inner.float())


def _pad(volume: torch.Tensor, plan: WindowPlan, settings: WindowSettings) -> torch.Tensor:
    margins: list[int] = []
    for axis in (2, 1, 0):
        before = plan.pad_before[axis]
        margins += [before, plan.padded_shape[axis] - volume.shape[axis + 1] - before]
    if not any(margins):
        return volume
    value = {"value": settings.padding_value} if settings.padding_mode == "constant" else {}
    return functional.pad(volume[None], margins, mode=settings.padding_mode, **value)[0]


def _checked(scores: torch.Tensor, plan: WindowPlan) -> torch.Tensor:
    if tuple(scores.shape[2:]) != plan.roi_size:
        raise CaseFailed(f"the network returned a window of {tuple(scores.shape[2:])}, expected {plan.roi_size}")
    # A sum is finite only if every term is (or overflows, which is as bad): one pass without a mask in memory. It is
    # taken of one channel after the other, since torch makes a copy in double precision of all that is summed at once.
    if not all(torch.isfinite(channel.sum(dtype=torch.float64)) for channel in scores.flatten(0, 1)):
        raise CaseFailed("the network returned values that are not finite; check the input's intensities")
    return scores.float()
