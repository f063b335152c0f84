"""A loss whose labels are soft where two structures touch, and hard at their common outline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from monai.losses import DiceCELoss
from monai.networks import one_hot
from monai.networks.layers import GaussianFilter
from torch import Tensor
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
    disagree. ``groups`` are the structures whose borders with one another are soft (class numbers); by default all
    are one group. A width that is not above 0, and a structure in two groups, is a ``ValueError``. Called with logits
    ``(B, classes, …)``, background first, and labels ``(B, 1, …)`` of a patch with three axes.
    """

    def __init__(self, sigma_voxels: float = 1.1, groups: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        if not sigma_voxels > 0.0:
            raise ValueError(f"sigma_voxels is {sigma_voxels}, expected a distance above 0; use DiceCELoss for none")
        members = [number for group in groups or () for number in group]
        if len(set(members)) < len(members) or 0 in members:
            raise ValueError(f"groups are {groups}, expected every structure in one of them, and no background")
        self.groups = groups
        self._smooth = GaussianFilter(3, sigma_voxels)
        self._loss = DiceCELoss(include_background=False, softmax=True, batch=True)

    def target(self, label: Tensor, classes: int) -> Tensor:
        """Probabilities ``(B, classes, …)`` in float32 for labels ``(B, 1, …)``; they add up to 1."""
        target = one_hot(label, classes)
        for group in self.groups or [list(range(1, classes))]:
            structures = target[:, list(group)]
            whole = structures.sum(1, keepdim=True)
            target[:, list(group)] = whole * self._smooth(structures) / self._smooth(whole).clamp_min(_NOTHING)
        return target

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """One minus the mean Dice of the structures over the batch, plus the cross-entropy."""
        return cast(Tensor, self._loss(prediction, self.target(label, prediction.shape[1])))
