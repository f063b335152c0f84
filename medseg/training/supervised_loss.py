"""Supervised losses beside MONAI's: of what is known, and with borders that are soft where readers choose them.

What is known may be classes or regions, with ignored voxels, in partly annotated cases. Where every voxel is known it
is MONAI's ``DiceCELoss`` over a batch (classes), or the Dice loss beside the binary cross-entropy of every region.
What is not known gets no gradient, with two things that are known nevertheless:

* a voxel that may be background or a structure nobody looked for: the probabilities of all that it may be are added
  up, and their sum is what the cross-entropy asks for (the marginal loss of Shi et al. 2021, arXiv 2007.03868);
* a voxel of another structure is none of these (their exclusion): there the Dice of each counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from monai.losses import DiceCELoss
from monai.networks import one_hot
from monai.networks.layers import GaussianFilter
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax
from torch.nn.modules.loss import _Loss

from medseg.transforms.known_labels import possible_classes

_SMOOTH = 1e-5
_NOTHING = 1e-6
"""Share of structures round a voxel that counts as none."""


class KnownDiceCELoss(_Loss):
    """Dice and cross-entropy from logits ``(B, channels, …)`` and labels of :class:`medseg.transforms.KnownLabelsd`.

    Parameters
    ----------
    sigmoid
        The channels are regions and the label ``(B, regions, …)``; otherwise classes, background first, and the label
        is ``(B, 1, …)``.
    """

    def __init__(self, *, sigmoid: bool = False) -> None:
        super().__init__()
        self.sigmoid = sigmoid

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The loss: the mean Dice loss of the structures plus the mean cross-entropy of what is known."""
        return self._of_regions(prediction, label) if self.sigmoid else self._of_classes(prediction, label)

    def _of_regions(self, logits: Tensor, label: Tensor) -> Tensor:
        known = (label >= 0).to(logits)
        target = label.clamp_min(0).to(logits)
        entropy = binary_cross_entropy_with_logits(logits, target, known, reduction="sum") / known.sum().clamp_min(1)
        return entropy + dice_loss(logits.sigmoid(), target, known)

    def _of_classes(self, logits: Tensor, label: Tensor) -> Tensor:
        possible = possible_classes(label, logits.shape[1])
        count = possible.sum(1, keepdim=True)
        judged = count < logits.shape[1]
        log_p = log_softmax(logits, dim=1)
        marginal = log_p.masked_fill(~possible, -torch.inf).logsumexp(1, keepdim=True)
        entropy = -torch.where(judged, marginal, 0.0).sum() / judged.sum().clamp_min(1)
        single = count == 1
        known = (single | ~possible)[:, 1:].to(logits)
        return entropy + dice_loss(log_p.exp()[:, 1:], (possible & single)[:, 1:].to(logits), known)


class SoftBorderLoss(_Loss):
    """MONAI's ``DiceCELoss`` of classes against labels that change gradually from one structure to the next.

    Where a structure ends against another by a reader's choice, as the head of the hippocampus against its body, the
    next reader takes the slice beside it. A network that hears of one voxel only the one choice learns the choices of
    its training cases by heart. Here the foreground stays as it was drawn, and a voxel of it belongs to each structure
    by that structure's share of the foreground nearby, weighted by a Gaussian: spatially varying label smoothing
    (Islam and Glocker 2021, arXiv 2104.05788), within the foreground alone.

    ``sigma_voxels`` is the standard deviation of that Gaussian, of the order of the distance by which readers
    disagree. ``groups`` are the structures whose borders with one another are soft (class numbers); by default all
    are one group. A width that is not above 0, a structure in two groups, and one that is no class of the network is a
    ``ValueError``. Called with logits
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
        if any(number >= classes for group in self.groups or () for number in group):
            raise ValueError(f"groups are {self.groups}, and the network has the classes 0 to {classes - 1} alone")
        target = one_hot(label, classes)
        for group in self.groups or [list(range(1, classes))]:
            structures = target[:, list(group)]
            whole = structures.sum(1, keepdim=True)
            target[:, list(group)] = whole * self._smooth(structures) / self._smooth(whole).clamp_min(_NOTHING)
        return target

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """One minus the mean Dice of the structures over the batch, plus the cross-entropy."""
        return cast(Tensor, self._loss(prediction, self.target(label, prediction.shape[1])))


def dice_loss(probability: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 − Dice of each channel over the known voxels of the whole batch, averaged over the channels ``(B, C, …)``.

    A channel of which nothing is known in the batch costs nothing.
    """
    axes = [0, *range(2, target.ndim)]
    overlap = (probability * target * known).sum(axes)
    both = ((probability + target) * known).sum(axes)
    return (1.0 - (2.0 * overlap + _SMOOTH) / (both + _SMOOTH)).mean()
