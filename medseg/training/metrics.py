"""Validation metrics in the units of the patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import HausdorffDistanceMetric
from monai.utils import MetricReduction
from torch import Tensor

__all__ = ["HausdorffMillimetres"]


class _SpacedHausdorff(HausdorffDistanceMetric):
    def __init__(self, spacing_mm: Sequence[float], percentile: float | None) -> None:
        super().__init__(include_background=False, percentile=percentile, reduction=MetricReduction.MEAN)
        self.spacing_mm = list(spacing_mm)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **_: Any) -> Tensor:
        distances: Tensor = super()._compute_tensor(y_pred, y, spacing=self.spacing_mm)
        return torch.where(torch.isfinite(distances), distances, torch.nan)  # MONAI leaves NaN, not inf, out of means


class HausdorffMillimetres(IgniteMetricHandler):
    """Mean Hausdorff distance over cases and structures, in mm (MONAI's own handler reports voxels).

    A structure that is missing on one side has no distance and does not enter the mean: read it beside the Dice
    coefficient, which is 0 there.

    Parameters
    ----------
    spacing_mm
        Spacing of the grid on which validation happens.
    percentile
        95 for HD95; None for the maximum.
    output_transform
        Turns ``engine.state.output`` into (prediction, reference), both one-hot.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float],
        percentile: float | None = 95.0,
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        super().__init__(
            metric_fn=_SpacedHausdorff(spacing_mm, percentile), output_transform=output_transform, save_details=False
        )
