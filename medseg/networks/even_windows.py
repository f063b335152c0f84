"""nnU-Net's windows: spread evenly from edge to edge, weighted by a bell, summed in half precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional

_SIGMA, _PEAK = 1 / 8, 10.0


def even_starts(shape: Sequence[int], roi: Sequence[int], step: float) -> list[list[int]]:
    """Per axis the first voxel of every window: as few as lie at most ``step`` of a window (or a voxel) apart, evenly
    spread."""
    starts = []
    for size, window in zip(shape, roi, strict=True):
        count = math.ceil((size - window) / max(window * step, 1)) + 1
        apart = (size - window) / (count - 1) if count > 1 else 0.0
        starts.append([int(np.round(apart * index)) for index in range(count)])
    return starts


def bell(roi: Sequence[int]) -> Tensor:
    """Weights of a window's voxels in half precision, 10 in its centre; none is zero."""
    weights = np.ones(tuple(roi))
    for axis, size in enumerate(roi):
        peak = np.zeros(size)
        peak[size // 2] = 1.0
        along = gaussian_filter1d(peak, size * _SIGMA, mode="constant")
        weights *= along.reshape([-1 if other == axis else 1 for other in range(len(roi))])
    rounded = torch.from_numpy(weights / weights.max() * _PEAK).half()
    rounded[rounded == 0] = rounded[rounded > 0].min()
    return rounded


class EvenWindowInferer(Inferer):
    """Sliding windows at nnU-Net's places, with its weights; for MONAI's evaluators.

    ``roi_size`` is in voxels; neighbours lie at most ``step`` of a window apart; smaller images are padded with zeros.
    """

    def __init__(self, roi_size: Sequence[int], step: float = 0.5, sw_batch_size: int = 1) -> None:
        super().__init__()
        if not 0 < step <= 1 or min(roi_size) < 1 or sw_batch_size < 1:
            raise ValueError(f"found windows of {roi_size}, {step} apart; expected a step above 0, at most 1")
        self.roi_size, self.step = tuple(int(size) for size in roi_size), float(step)
        self.sw_batch_size = int(sw_batch_size)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Scores ``(N, K, *size)``, float32, of images ``(N, C, *size)``; a ``ValueError`` if they overflow."""
        size = inputs.shape[2:]
        margins = [max(window - n, 0) for window, n in zip(self.roi_size, size, strict=True)]
        edges = [edge for margin in reversed(margins) for edge in (margin // 2, margin - margin // 2)]
        padded, weights = functional.pad(inputs, edges), bell(self.roi_size).to(inputs.device)
        total, sums = torch.zeros(padded.shape[2:], dtype=torch.half, device=inputs.device), None
        for start in itertools.product(*even_starts(padded.shape[2:], self.roi_size, self.step)):
            window = tuple(slice(first, first + n) for first, n in zip(start, self.roi_size, strict=True))
            scores = network(padded[:, :, *window], *args, **kwargs)
            if sums is None:
                sums = total.new_zeros(*scores.shape[:2], *total.shape)
            sums[:, :, *window] += scores * weights
            total[window] += weights
        assert sums is not None, "there is one window at least"
        if not torch.isfinite(sums.sum(dtype=torch.float64)):
            raise ValueError("the network's scores are too large for half precision, in which nnU-Net sums them")
        inside = tuple(slice(margin // 2, margin // 2 + n) for margin, n in zip(margins, size, strict=True))
        scores = (sums / total)[:, :, *inside]
        result: Tensor = convert_to_dst_type(scores, inputs, dtype=torch.float)[0]  # its facts, too
        return result
