"""Losses between generator and discriminator, all on logits (no sigmoid is ever applied before them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, relu

__all__ = ["AdversarialKind", "AdversarialLoss", "feature_matching", "gradient_penalty"]

AdversarialKind = Literal["classical", "least-squares", "hinge"]


class AdversarialLoss(nn.Module):
    """What discriminator and generator minimise; several scales are averaged.

    Parameters
    ----------
    kind
        ``"classical"``: the discriminator minimises −[log D(x) + log(1 − D(G))] and the generator −log D(G)
        (Goodfellow et al. 2014, the non-saturating pair); ``"least-squares"`` (Mao et al. 2017);
        ``"hinge"`` (Lim and Ye 2017).

    Raises
    ------
    ValueError
        If ``kind`` is none of these.
    """

    def __init__(self, kind: AdversarialKind = "classical") -> None:
        super().__init__()
        if kind not in get_args(AdversarialKind):
            raise ValueError(
                f"found the adversarial loss {kind!r}, expected one of {', '.join(get_args(AdversarialKind))}"
            )
        self.kind = kind

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Loss of the discriminator from the logits of real and fake pairs, one tensor per scale."""
        losses = [self._real(r) + self._fake(f) for r, f in zip(real, fake, strict=True)]
        return torch.stack(losses).mean()

    def generator(self, fake: Sequence[Tensor]) -> Tensor:
        """Loss of the generator from the logits that its pairs received."""
        return torch.stack([self._deceive(f) for f in fake]).mean()

    def forward(self, fake: Sequence[Tensor]) -> Tensor:
        """Same as :meth:`generator`."""
        return self.generator(fake)

    def _real(self, logits: Tensor) -> Tensor:
        if self.kind == "classical":
            return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        if self.kind == "hinge":
            return relu(1.0 - logits).mean()
        return ((logits - 1.0) ** 2).mean()

    def _fake(self, logits: Tensor) -> Tensor:
        if self.kind == "classical":
            return binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        if self.kind == "hinge":
            return relu(1.0 + logits).mean()
        return (logits**2).mean()

    def _deceive(self, logits: Tensor) -> Tensor:
        if self.kind == "hinge":
            return -logits.mean()
        return self._real(logits)


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean L1 distance between the discriminator's feature maps of real and fake pairs (Wang et al. 2018).

    The real maps are a target: no gradient flows into them.
    """
    distances = [l1_loss(f, r.detach()) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return torch.stack(distances).mean()


def gradient_penalty(logits: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """R1 penalty: squared norm of the discriminator's gradient at real inputs (Mescheder et al. 2018).

    ``inputs`` must require gradients and the logits must depend on it.
    """
    total = torch.stack([scale.sum() for scale in logits]).sum()
    (gradient,) = torch.autograd.grad(total, inputs, create_graph=True)
    return gradient.pow(2).flatten(1).sum(1).mean()
