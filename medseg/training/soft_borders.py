"""A loss whose labels are soft where two structures touch, and hard at their common outline."""

from __future__ import annotations

from typing import cast

from monai.losses import DiceCELoss
from monai.networks import one_hot
from monai.networks.layers import GaussianFilter
from torch import Tensor, cat
from torch.nn.modules.loss import _Loss

_NOTHING = 1e-6
"""Share of foreground round a voxel that counts as none."""


class SoftBorderLoss(_Loss):
    """MONAI's ``DiceCELoss`` of classes against labels that change gradually from one structure to the next.

    Where a structure ends against another by a reader's choice, as the head of the hippocampus against its body, the
    next reader takes the slice beside it. A network that hears of one voxel only the one choice learns the choices of
    its training cases by heart. Here the foreground stays as it was drawn, and a voxel of it belongs to each structure
    by that structure's share of the foreground nearby, weighted by a Gaussian: spatially varying label smoothing
    (Islam and Glocker 2021, arXiv 2104.05788), within the foreground alone.

    ``sigma_voxels`` is the standard deviation of that Gaussian, of the order of the distance by which readers
    disagree; not above 0, it is a ``ValueError``. Called with logits ``(B, classes, …)``, background first, and labels
    ``(B, 1, …)`` of a patch with three axes.
    """

    def __init__(self, sigma_voxels: float = 1.0) -> None:
        super().__init__()
        if not sigma_voxels > 0.0:
            raise ValueError(f"sigma_voxels is {sigma_voxels}, expected a distance above 0; use DiceCELoss for none")
        self._smooth = GaussianFilter(3, sigma_voxels)
        self._loss = DiceCELoss(include_background=False, softmax=True, batch=True)

    def target(self, label: Tensor, classes: int) -> Tensor:
        """Probabilities ``(B, classes, …)`` in float32 for labels ``(B, 1, …)``; they add up to 1."""
        structures = one_hot(label, classes)[:, 1:]
        foreground = structures.sum(1, keepdim=True)
        share = self._smooth(structures) / self._smooth(foreground).clamp_min(_NOTHING)
        return cat([1.0 - foreground, foreground * share], 1)

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """One minus the mean Dice of the structures over the batch, plus the cross-entropy."""
        return cast(Tensor, self._loss(prediction, self.target(label, prediction.shape[1])))
