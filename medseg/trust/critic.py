"""The discriminator, finished: after its training against the generator it learns how wrong each patch is.

An adversarial discriminator tells references from predictions; it need not tell good predictions from poor ones. The
critic keeps its convolutions and its patch grid and answers, for every patch and structure, which share of the voxels
is labelled though it should not be, and which share should be and is not. Added up over the patches these are the
false positives and negatives, and with the volume of the mask an estimate of Dice without a reference. What the
softmax itself expects is the starting point; the critic learns where the softmax is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate, one_hot, pad

from medseg.errors import BundleError
from medseg.files import atomic_path
from medseg.networks import ConditionalPatchDiscriminator

__all__ = ["CRITIC_NAME", "Critic", "CriticShape", "Errors", "local_errors"]

CRITIC_NAME = "trust/critic.safetensors"
_FORMAT = "medseg-critic-1"
_HIDDEN = 64
_LEAST = 1e-3
"""Shares below this are the same as none."""


@dataclass(frozen=True)
class CriticShape:
    """The discriminator that a critic is made of, as in :class:`medseg.networks.ConditionalPatchDiscriminator`."""

    label_channels: int
    image_channels: int = 1
    channels: int = 16
    layers: int = 2

    def discriminator(self) -> ConditionalPatchDiscriminator:
        """A new one, untrained."""
        return ConditionalPatchDiscriminator(self.label_channels, self.image_channels, self.channels, self.layers)

    @property
    def stride(self) -> int:
        """Voxels per patch and axis."""
        return int(2**self.layers)


@dataclass(frozen=True)
class Errors:
    """Estimated errors of one case.

    Parameters
    ----------
    invented, missed
        Voxels wrongly labelled and wrongly not labelled, per structure ``(K - 1,)``.
    dice
        What Dice they give ``(K - 1,)``.
    doubt
        Share of voxels with a wrong label round every voxel, ``(H, W, D)``, 0 to 1.
    """

    invented: Tensor
    missed: Tensor
    dice: Tensor
    doubt: Tensor


class Critic(nn.Module):
    """Estimates the errors of a segmentation patch by patch.

    Parameters
    ----------
    shape
        Of the discriminator it is made of.
    """

    def __init__(self, shape: CriticShape) -> None:
        super().__init__()
        self.shape = shape
        self.discriminator = shape.discriminator()
        found = 2 * (shape.label_channels - 1)
        last = nn.Conv3d(_HIDDEN, found, kernel_size=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        first = nn.Conv3d(shape.channels * 2**shape.layers + found, _HIDDEN, kernel_size=1)
        self.head = nn.Sequential(first, nn.LeakyReLU(0.2), last)
        self.trust = nn.Parameter(torch.ones(found))

    def forward(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Logits of the shares of invented and missed voxels, ``(1, 2(K - 1), h, w, d)``.

        Parameters
        ----------
        image
            ``(1, C, H, W, D)``.
        probabilities
            ``(1, K, H, W, D)``.
        """
        labels = probabilities.max(1)[1]
        own = local_errors(labels, probabilities, self.shape.stride)
        padded = _padded(probabilities, self.shape.stride)
        padded[:, 0] += 1.0 - padded.sum(1)
        judged = self.discriminator(_padded(image, self.shape.stride), padded)
        expected = torch.logit(own, eps=_LEAST)
        found: Tensor = self.head(torch.cat([judged.features[0][-1], expected / 5], dim=1))
        return found + self.trust.view(1, -1, 1, 1, 1) * expected

    @torch.inference_mode()
    def judge(self, image: Tensor, probabilities: Tensor) -> Errors:
        """Estimate for one case, ``(C, H, W, D)`` and ``(K, H, W, D)``."""
        shares = self(image[None], probabilities[None])
        invented, missed, dice = self.totals(shares, probabilities[None])
        return Errors(invented, missed, dice, self._map(torch.sigmoid(shares), probabilities))

    def totals(self, logits: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels invented and missed, and Dice, per structure ``(K - 1,)``, from logits of one case."""
        voxels = float(self.shape.stride) ** 3
        counts = (torch.sigmoid(logits) - _LEAST).clamp_min(0).sum((0, 2, 3, 4)) * voxels
        labels = probabilities.max(1)[1]
        size = torch.stack([(labels == c).sum() for c in range(1, probabilities.shape[1])]).float()
        invented, missed = counts.chunk(2)
        invented = torch.minimum(invented, size)
        dice = 2 * (size - invented) / (2 * size - invented + missed).clamp_min(1.0)
        return invented, missed, dice

    def _map(self, shares: Tensor, probabilities: Tensor) -> Tensor:
        """Shares of the patches, interpolated to voxels and laid over where errors can be."""
        n = probabilities.shape[1:]
        size = [math.ceil(x / self.shape.stride) * self.shape.stride for x in n]
        wide = interpolate(shares.sum(1, keepdim=True), size, mode="trilinear", align_corners=False)[0, 0]
        return wide[: n[0], : n[1], : n[2]].clamp(0, 1)

    def write(self, path: Path, weights_sha256: str) -> None:
        """Write safetensors that name the weights of the network whose results it judges."""
        from safetensors.torch import save

        facts = {"format": _FORMAT, "weights_sha256": weights_sha256, "shape": json.dumps(asdict(self.shape))}
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        with atomic_path(path) as partial:
            partial.write_bytes(save(state, facts))

    @classmethod
    def read(cls, path: Path) -> tuple[Critic, str]:
        """A critic in evaluation mode and the SHA-256 of the weights it belongs to.

        Raises
        ------
        BundleError
            If the file is something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as content:
                facts: Mapping[str, str] = content.metadata() or {}
                state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  not a mapping
            critic, belongs_to = cls._built(facts), facts["weights_sha256"]
            critic.load_state_dict(state)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, ArithmeticError) as error:
            raise BundleError(f"{path} is not a critic ({error!r}); fit it again: medseg trust fit") from error
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise BundleError(f"{path} holds values that are not finite; fit it again: medseg trust fit")
        return critic.eval(), belongs_to

    @classmethod
    def _built(cls, facts: Mapping[str, str]) -> Critic:
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']!r}, expected {_FORMAT!r}")
        described: dict[str, Any] = json.loads(facts["shape"])
        if not isinstance(described, dict) or not all(isinstance(v, int) and 0 <= v <= 512 for v in described.values()):
            raise ValueError("no sensible shape")
        return cls(CriticShape(**described))


def local_errors(labels: Tensor, wanted: Tensor, stride: int) -> Tensor:
    """Shares of voxels invented and missed per patch ``(B, 2(K - 1), h, w, d)``.

    Parameters
    ----------
    labels
        Label map ``(B, H, W, D)`` that is judged.
    wanted
        Probabilities or one-hot reference ``(B, K, H, W, D)``.
    stride
        Voxels per patch and axis.
    """
    mask = one_hot(labels.long(), wanted.shape[1]).movedim(-1, 1)[:, 1:].float()
    truth = wanted[:, 1:].float()
    both = torch.cat([mask * (1 - truth), (1 - mask) * truth], dim=1)
    size = [math.ceil(n / stride) * stride for n in both.shape[2:]]
    ends = [0 if i % 2 == 0 else size[2 - i // 2] - both.shape[4 - i // 2] for i in range(6)]
    return avg_pool3d(pad(both, ends), stride)


def _padded(volume: Tensor, stride: int) -> Tensor:
    """Zeros round a volume so that the discriminator's patches tile it.

    Patch ``i`` of a discriminator with stride ``S`` is centred on voxel ``S·i + S - ½``.
    """
    ends: list[int] = []
    for n in reversed(volume.shape[2:]):
        ends += [stride // 2, math.ceil(n / stride) * stride + stride // 2 - n]
    return pad(volume, ends)
