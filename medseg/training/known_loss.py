"""The supervised loss over what is known: classes or regions, ignored voxels, partly annotated cases.

Where every voxel is known it is MONAI's ``DiceCELoss`` over a batch (classes), or the Dice loss beside the binary
cross-entropy of every region. What is not known gets no gradient, with two things that are known nevertheless:

* a voxel that may be background or a structure nobody looked for: the probabilities of all that it may be are added
  up, and their sum is what the cross-entropy asks for (the marginal loss of Shi et al. 2021, arXiv 2007.03868);
* a voxel of another structure is none of these (their exclusion): there the Dice of each counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax
from torch.nn.modules.loss import _Loss

from medseg.transforms.known_labels import possible_classes

_SMOOTH = 1e-5


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


def dice_loss(probability: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 − Dice of each channel over the known voxels of the whole batch, averaged over the channels ``(B, C, …)``.

    A channel of which nothing is known in the batch costs nothing.
    """
    axes = [0, *range(2, target.ndim)]
    overlap = (probability * target * known).sum(axes)
    both = ((probability + target) * known).sum(axes)
    return (1.0 - (2.0 * overlap + _SMOOTH) / (both + _SMOOTH)).mean()
