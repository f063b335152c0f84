"""The discriminator, fine-tuned to say how wrong each patch of a result is.

An adversarial discriminator tells references from predictions; it need not tell good predictions from poor ones. The
error net keeps its convolutions and its patch grid and goes on learning, on results of many qualities with their
references. For every patch and structure it answers which share of the voxels is labelled though it should not be, and
which share should be and is not. Added up over the patches these are the false positives and negatives, and with the
volume of the mask an estimate of Dice without a reference. What the softmax itself expects is the starting point; the
error net learns where the softmax is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, binary_cross_entropy_with_logits, interpolate, one_hot, pad

from medseg.errors import BundleError
from medseg.files import write_bytes
from medseg.json_shape import TEXT, Spec, misfit, one_of, parse_json, whole
from medseg.networks.discriminator import ConditionalPatchDiscriminator
from medseg.trust.crop import most_probable, structure_box
from medseg.trust.fit_cases import TrustCase
from medseg.trust.stored import check_weights

_FORMAT = "medseg-critic-1"
_FACTS: Spec = {"format!": one_of(_FORMAT), "weights_sha256!": TEXT, "shape!": TEXT}
_SHAPE: Spec = {
    "label_channels!": whole(2, 1024),
    "image_channels": whole(1, 64),
    "channels": whole(1, 512),
    "layers": whole(0, 8),
    "products": whole(0, 1),
}
_MOST_CHANNELS = 1024
_HIDDEN = 64
_LEARNING_RATE = 2e-3
"""The largest, reached after a tenth of the steps; it ends at zero."""
_DICE_WEIGHT = 2.0
"""Of the error of the whole case's Dice beside that of the patches."""
_LEAST = 1e-3
"""Shares below this are the same as none."""


@dataclass(frozen=True)
class ErrorNetShape:
    """The discriminator behind it, as in :class:`medseg.networks.ConditionalPatchDiscriminator`."""

    label_channels: int
    image_channels: int = 1
    channels: int = 16
    layers: int = 2
    products: int = 0

    def discriminator(self) -> ConditionalPatchDiscriminator:
        """A new one, untrained."""
        return ConditionalPatchDiscriminator(
            self.label_channels, self.image_channels, self.channels, self.layers, products=bool(self.products)
        )

    def __post_init__(self) -> None:
        if self.channels * 2**self.layers > _MOST_CHANNELS:  # a few bytes must not ask for gigabytes
            raise ValueError(f"{self.channels} channels in {self.layers} layers, expected {_MOST_CHANNELS} at the end")

    @property
    def stride(self) -> int:
        """Voxels per patch and axis."""
        return int(2**self.layers)


@dataclass(frozen=True)
class EstimatedErrors:
    """Estimated errors of one case: voxels and Dice per structure ``(K - 1,)``, and where the errors are."""

    false_positives: Tensor
    false_negatives: Tensor
    dice: Tensor
    error_map: Tensor  # share of voxels with a wrong label round every voxel, ``(H, W, D)``, 0 to 1


class ErrorNet(nn.Module):
    """Estimates the errors of a segmentation patch by patch."""

    def __init__(self, shape: ErrorNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.discriminator = shape.discriminator()
        outputs = 2 * (shape.label_channels - 1)
        last = nn.Conv3d(_HIDDEN, outputs, kernel_size=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        first = nn.Conv3d(shape.channels * 2**shape.layers + outputs, _HIDDEN, kernel_size=1)
        self.head = nn.Sequential(first, nn.LeakyReLU(0.2), last)
        self.trust = nn.Parameter(torch.ones(outputs))

    def forward(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Logits of the shares of false positives and negatives, ``(1, 2(K - 1), h, w, d)``.

        The image is ``(1, C, H, W, D)``, the probabilities are ``(1, K, H, W, D)``.
        """
        softmax = local_errors(probabilities.max(1)[1], probabilities, self.shape.stride)
        padded = _padded(probabilities, self.shape.stride)
        padded[:, 0] += 1.0 - padded.sum(1)
        patches = self.discriminator(_padded(image, self.shape.stride), padded).features[0][-1]
        expected = torch.logit(softmax, eps=_LEAST)
        learnt: Tensor = self.head(torch.cat([patches, expected / 5], dim=1))
        return learnt + self.trust.view(1, -1, 1, 1, 1) * expected

    @torch.inference_mode()
    def estimate(self, image: Tensor, probabilities: Tensor) -> EstimatedErrors:
        """Errors of one case, ``(C, H, W, D)`` and ``(K, H, W, D)``, as tensors on the CPU."""
        device = self.trust.device
        logits = self(image[None].to(device), probabilities[None].to(device)).cpu()
        false_positives, false_negatives, dice = self.totals(logits, probabilities[None])
        # shares of the patches, interpolated to voxels
        n, stride = probabilities.shape[1:], self.shape.stride
        size = [math.ceil(x / stride) * stride for x in n]
        shares = torch.sigmoid(logits).sum(1, keepdim=True)
        wide = interpolate(shares, size, mode="trilinear", align_corners=False)[0, 0]
        return EstimatedErrors(false_positives, false_negatives, dice, wide[: n[0], : n[1], : n[2]].clamp(0, 1))

    def totals(self, logits: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """False positives and negatives in voxels, and Dice, per structure ``(K - 1,)``, from logits of one case."""
        voxels = float(self.shape.stride) ** 3
        counts = (torch.sigmoid(logits) - _LEAST).clamp_min(0).sum((0, 2, 3, 4)) * voxels
        labels = probabilities.max(1)[1]
        size = torch.stack([(labels == c).sum() for c in range(1, probabilities.shape[1])]).float()
        false_positives, false_negatives = counts.chunk(2)
        false_positives = torch.minimum(false_positives, size)
        dice = 2 * (size - false_positives) / (2 * size - false_positives + false_negatives).clamp_min(1.0)
        return false_positives, false_negatives, dice

    def write(self, path: Path, weights_sha256: str) -> None:
        """Write safetensors that name the weights of the network whose results it is for."""
        from safetensors.torch import save

        facts = {"format": _FORMAT, "weights_sha256": weights_sha256, "shape": json.dumps(asdict(self.shape))}
        write_bytes(path, save({name: value.detach().contiguous() for name, value in self.state_dict().items()}, facts))

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str] | None = None) -> ErrorNet:
        """One in evaluation mode; nothing in the file is executed.

        Raises ``BundleError`` if the file is something else, or belongs to other weights than ``weights_sha256`` (None:
        any).
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as content:
                facts: Mapping[str, str] = content.metadata() or {}
                state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  not a mapping
            shape = parse_json(facts.get("shape", "null").encode())
            if wrong := misfit(facts, _FACTS) or misfit(shape, _SHAPE, "shape"):
                raise ValueError(wrong)
            if unknown := set(shape) - {entry.name for entry in fields(ErrorNetShape)}:
                raise ValueError(f"its shape says {min(unknown)[:50]!r}, which is none of an error net's")
            if odd := [name for name, value in state.items() if value.dtype != torch.float32]:
                raise ValueError(f"{odd[0]} holds {state[odd[0]].dtype}, expected float32")
            net = cls(ErrorNetShape(**shape))
            net.load_state_dict(state)
        except (OSError, SafetensorError, ValueError, RuntimeError, ArithmeticError) as error:
            why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise BundleError(f"{path} is not an error net ({why}); fit it again: medseg trust fit") from error
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise BundleError(f"{path} holds values that are not finite; fit it again: medseg trust fit")
        if weights_sha256 is not None:
            check_weights(path, facts["weights_sha256"], weights_sha256)
        return net.eval()


def local_errors(labels: Tensor, truth: Tensor, stride: int) -> Tensor:
    """Shares of false positives and negatives per patch ``(B, 2(K - 1), h, w, d)`` of ``stride`` voxels a side.

    The label map is ``(B, H, W, D)``, the truth probabilities or a one-hot reference ``(B, K, H, W, D)``.
    """
    mask = one_hot(labels.long(), truth.shape[1]).movedim(-1, 1)[:, 1:].float()
    truth = truth[:, 1:].float()
    both = torch.cat([mask * (1 - truth), (1 - mask) * truth], dim=1)
    ends = [end for n in reversed(both.shape[2:]) for end in (0, -n % stride)]
    return avg_pool3d(pad(both, ends), stride)


def _padded(volume: Tensor, stride: int) -> Tensor:
    """Zeros round a volume so that the discriminator's patches tile it.

    Patch ``i`` of a discriminator with stride ``S`` is centred on voxel ``S·i + S - ½``.
    """
    return pad(volume, [end for n in reversed(volume.shape[2:]) for end in (stride // 2, -n % stride + stride // 2)])


@dataclass(frozen=True)
class FineTuning:
    """How a discriminator becomes an error net."""

    steps: int = 300
    batch: int = 4  # cases per step


def fine_tune(error_net: ErrorNet, cases: Sequence[TrustCase], options: FineTuning | None = None) -> ErrorNet:
    """Train on cases that the network has not been trained on; the error net is changed in place and returned."""
    options = options or FineTuning()
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(error_net.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    error_net.train()
    order: list[int] = []
    for _ in range(options.steps):
        for _ in range(options.batch):
            order = order or rng.permutation(len(cases)).tolist()
            loss = _loss(error_net, cases[order.pop()], rng) / options.batch
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(error_net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return error_net.eval()


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _loss(error_net: ErrorNet, case: TrustCase, rng: np.random.Generator) -> Tensor:
    image, probabilities, reference = _augmented(case, rng)
    labels = most_probable(probabilities)
    truth = one_hot(reference.long(), len(probabilities)).movedim(-1, 0)
    target = local_errors(labels[None], truth[None], error_net.shape.stride)
    logits = error_net(image[None], probabilities[None])
    # where nothing is and nothing should be there is little to learn; it counts a tenth
    matters = (target.sum(1, keepdim=True) > 0) | (logits.detach().amax(1, keepdim=True) > -3.0)
    weight = torch.where(matters, 1.0, 0.1).expand_as(logits)
    patches = binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / weight.sum()
    _, _, dice = error_net.totals(logits, probabilities[None])
    mask, truth = one_hot(labels, len(probabilities)).movedim(-1, 0)[1:].float(), truth[1:].float()
    total = (mask.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp_min(1.0)
    true_dice = 2 * (mask * truth).sum((1, 2, 3)) / total
    return patches + _DICE_WEIGHT * (dice - true_dice).abs().mean()


def _augmented(case: TrustCase, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The structures with more or less of their surroundings, at another brightness, mirrored half of the time."""
    box = structure_box(most_probable(case.crop.probabilities))
    i, j, k = (_narrowed(side, rng) for side in box)
    image = case.crop.image[:, i, j, k]
    image = image * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1))
    image = image + float(rng.uniform(0.0, 0.1)) * torch.from_numpy(rng.standard_normal(image.shape).astype(np.float32))
    parts = [image, case.crop.probabilities[:, i, j, k], torch.from_numpy(case.reference)[i, j, k]]
    if rng.random() < 0.5:
        parts = [part.flip(-3) for part in parts]
    return parts[0], parts[1], parts[2]


def _narrowed(side: slice, rng: np.random.Generator) -> slice:
    """A side of the box, up to a fifth shorter at each end; what is cut changes where patches begin."""
    most = (side.stop - side.start) // 5
    return slice(side.start + int(rng.integers(0, most + 1)), side.stop - int(rng.integers(0, most + 1)))
