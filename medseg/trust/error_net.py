"""The discriminator, fine-tuned to say how wrong each patch of a result is.

The discriminator, finished: after its training against the generator it learns how wrong each patch is.

An adversarial discriminator tells references from predictions; it need not tell good predictions from poor ones. The
critic keeps its convolutions and its patch grid and answers, for every patch and structure, which share of the voxels
is labelled though it should not be, and which share should be and is not. Added up over the patches these are the
false positives and negatives, and with the volume of the mask an estimate of Dice without a reference. What the
softmax itself expects is the starting point; the critic learns where the softmax is wrong.

Finish a discriminator: teach it how wrong every patch is, on results of many qualities with their references.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, binary_cross_entropy_with_logits, interpolate, one_hot, pad

from medseg.errors import BundleError
from medseg.files import atomic_path
from medseg.networks.discriminator import ConditionalPatchDiscriminator
from medseg.trust.crop import found_labels, region_of

CRITIC_NAME = "trust/critic.safetensors"
_FORMAT = "medseg-critic-1"
_HIDDEN = 64
_LEAST = 1e-3
"""Shares below this are the same as none."""


@dataclass(frozen=True)
class ErrorNetShape:
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


class ErrorNet(nn.Module):
    """Estimates the errors of a segmentation patch by patch.

    Parameters
    ----------
    shape
        Of the discriminator it is made of.
    """

    def __init__(self, shape: ErrorNetShape) -> None:
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
    def read(cls, path: Path) -> tuple[ErrorNet, str]:
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
    def _built(cls, facts: Mapping[str, str]) -> ErrorNet:
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']!r}, expected {_FORMAT!r}")
        described: dict[str, Any] = json.loads(facts["shape"])
        if not isinstance(described, dict) or not all(isinstance(v, int) and 0 <= v <= 512 for v in described.values()):
            raise ValueError("no sensible shape")
        return cls(ErrorNetShape(**described))


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


class Judged(Protocol):
    """A result with its reference."""

    @property
    def image(self) -> Tensor:
        """``(C, H, W, D)``."""

    @property
    def probabilities(self) -> Tensor:
        """``(K, H, W, D)``."""

    @property
    def reference(self) -> NDArray[np.uint8]:
        """``(H, W, D)``."""


@dataclass(frozen=True)
class FineTuning:
    """How a discriminator is finished.

    Parameters
    ----------
    steps
        Updates.
    batch
        Cases per update.
    learning_rate
        The largest, reached after a tenth of the steps; it ends at zero.
    dice_weight
        Weight of the error of the whole case's Dice beside that of the patches.
    seed
        Of the order and of the augmentation.
    progress
        Called after every step with its number.
    """

    steps: int = 300
    batch: int = 4
    learning_rate: float = 2e-3
    dice_weight: float = 2.0
    seed: int = 0
    progress: Callable[[int], None] = field(default=lambda _: None, compare=False)


def fine_tune(critic: ErrorNet, cases: Sequence[Judged], options: FineTuning | None = None) -> ErrorNet:
    """Train ``critic`` on cases that the network has not been trained on; it is changed in place and returned."""
    options = options or FineTuning()
    rng = np.random.default_rng(options.seed)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    critic.train()
    order: list[int] = []
    for step in range(options.steps):
        for _ in range(options.batch):
            order = order or rng.permutation(len(cases)).tolist()
            loss = _loss(critic, cases[order.pop()], options.dice_weight, rng) / options.batch
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        options.progress(step + 1)
    return critic.eval()


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _loss(critic: ErrorNet, case: Judged, dice_weight: float, rng: np.random.Generator) -> Tensor:
    image, probabilities, reference = _augmented(case, rng)
    labels = found_labels(probabilities)
    wanted = one_hot(reference.long(), len(probabilities)).movedim(-1, 0)
    target = local_errors(labels[None], wanted[None], critic.shape.stride)
    logits = critic(image[None], probabilities[None])
    # where nothing is and nothing should be there is little to learn; it counts a tenth
    matters = (target.sum(1, keepdim=True) > 0) | (logits.detach().amax(1, keepdim=True) > -3.0)
    weight = torch.where(matters, 1.0, 0.1).expand_as(logits)
    patches = binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / weight.sum()
    _, _, dice = critic.totals(logits, probabilities[None])
    mask = one_hot(labels, len(probabilities)).movedim(-1, 0)[1:].float()
    truth = wanted[1:].float()
    total = (mask.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp_min(1.0)
    true_dice = 2 * (mask * truth).sum((1, 2, 3)) / total
    return patches + dice_weight * (dice - true_dice).abs().mean()


def _augmented(case: Judged, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The structures with more or less of their surroundings, at another brightness, mirrored half of the time."""
    box = region_of(found_labels(case.probabilities))
    i, j, k = (_narrowed(side, rng) for side in box)
    image = case.image[:, i, j, k]
    image = image * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1))
    image = image + float(rng.uniform(0.0, 0.1)) * torch.from_numpy(rng.standard_normal(image.shape).astype(np.float32))
    parts = [image, case.probabilities[:, i, j, k], torch.from_numpy(case.reference)[i, j, k]]
    if rng.random() < 0.5:
        parts = [part.flip(-3) for part in parts]
    return parts[0], parts[1], parts[2]


def _narrowed(side: slice, rng: np.random.Generator) -> slice:
    """A side of the box, up to a fifth shorter at each end; what is cut changes where patches begin."""
    most = (side.stop - side.start) // 5
    return slice(side.start + int(rng.integers(0, most + 1)), side.stop - int(rng.integers(0, most + 1)))
