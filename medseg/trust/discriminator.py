"""The discriminator as a judge of segmentations: its answer to a pair, and whether it may be believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.networks import one_hot
from monai.transforms import ResizeWithPadOrCrop
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d, pad

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.bundle.network_building import NetworkTooLarge, elements_in, frugal
from medseg.errors import BundleError
from medseg.json_shape import FLAG, TEXT, Spec, misfit, parse_json, read_bounded, whole
from medseg.networks.discriminator import ConditionalPatchDiscriminator
from medseg.results.verdict import DiscriminatorVerdict, RealShare
from medseg.transforms.mismatched_pairs import KINDS, MismatchedPairs, MismatchKind, possible
from medseg.trust.crop import Crop, most_probable
from medseg.trust.discriminator_acceptance import (
    DISCRIMINATOR_NAME,
    DiscriminatorAcceptance,
    Proportion,
    discriminator_state,
)

MARGIN_VOXELS = 4
"""Round the structures: a wrong segmentation may be shifted or dilated by as much."""
_LARGEST_BYTES = 1 << 20
DEFINITION: Spec = {
    "_target_": TEXT,
    "channels": whole(1, 512),
    "layers": whole(0, 8),
    "scales": whole(1, 8),
    "products": FLAG,
}
"""``trust/discriminator.json``, as far as it says how large a discriminator is; its weights must fit the rest."""
_WHY = {"swapped": "there is one structure", "another's": "there is no other segmentation"}


def read_discriminator(bundle: Bundle) -> ConditionalPatchDiscriminator:
    """The discriminator of a bundle, in evaluation mode; a ``BundleError`` if it has none that judges segmentations."""
    path = bundle.path / "trust" / "discriminator.json"
    try:
        stated = parse_json(read_bounded(path, _LARGEST_BYTES))
        if wrong := misfit(stated, DEFINITION):
            raise ValueError(wrong)
        if stated.pop("_target_").rpartition(".")[2] != ConditionalPatchDiscriminator.__name__:
            raise ValueError("another class")
        weights = bundle.path / DISCRIMINATOR_NAME  # a few bytes must not ask for more memory than these take
        with frugal(elements_in([weights]), bundle.name, without_memory=True):
            network = ConditionalPatchDiscriminator(**stated)
        network.load_state_dict(read_weights(weights), assign=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, NetworkTooLarge) as error:
        raise BundleError(
            f"{bundle.name} has no discriminator of segmentations that can be read ({error}); expected {path.name} and "
            f"{DISCRIMINATOR_NAME}. Train and publish it: medseg train --publish"
        ) from error
    return network.float().eval()


@dataclass(frozen=True)
class Judging:
    """How a discriminator sees segmentations.

    Attributes
    ----------
    patch
        Side of the windows in voxels, as in its training: its normalisation depends on it.
    classes
        Channels of a segmentation, with the background unless they are ``regions``.
    threshold
        Logits above it mean "real".
    regions
        Whether labels are regions that may overlap, a channel for each, instead of a map of classes.
    """

    patch: tuple[int, ...]
    classes: int
    threshold: float = 0.0
    regions: bool = False

    def segmentation(self, label: Tensor) -> Tensor:
        """A label ``(1, H, W[, D])``, or regions ``(R, …)``, as the discriminator sees it: ``(classes, …)``."""
        if self.regions:
            return (label > 0).float()
        return one_hot(label.long(), num_classes=self.classes, dim=0)

    def structures(self, segmentation: Tensor) -> Tensor:
        """A segmentation without the background."""
        return segmentation if self.regions else segmentation[1:]

    def with_background(self, structures: Tensor) -> Tensor:
        """The reverse of :meth:`structures`."""
        return structures if self.regions else torch.cat([1.0 - structures.sum(0, keepdim=True), structures])


def window_logits(
    discriminator: nn.Module, image: Tensor, segmentation: Tensor, judging: Judging
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Look at a pair ``(C, H, W[, D])`` and ``(classes, H, W[, D])`` in windows that cover it.

    Yields the structures of a window ``(structures, h, w[, d])`` and its logits ``(h', w'[, d'])``, by scale.
    """
    device = next(discriminator.parameters()).device
    missing = [max(0, wanted - n) for wanted, n in zip(judging.patch, image.shape[1:], strict=True)]
    sides = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    structures = pad(judging.structures(segmentation).to(device), sides)
    seen = pad(image.to(device).float(), sides), judging.with_background(structures)
    places = dense_patch_slices(seen[0].shape[1:], judging.patch, judging.patch)
    for place in places:
        inside = (slice(None), *place)
        with torch.inference_mode():
            judged = discriminator(*(one[inside][None] for one in seen)).logits
        yield structures[inside], [scale[0, 0] for scale in judged]


def pair_logits(discriminator: nn.Module, image: Tensor, segmentation: Tensor, judging: Judging) -> list[Tensor]:
    """Logits of a pair, as for :func:`window_logits`, by scale, of all windows."""
    found = [logits for _, logits in window_logits(discriminator, image, segmentation, judging)]
    return [torch.cat([logits.flatten() for logits in scale]) for scale in zip(*found, strict=True)]


def mean_logit(discriminator: nn.Module, image: Tensor, segmentation: Tensor, judging: Judging) -> float:
    """How real a pair looks on the whole: the mean over its patches, and over the scales."""
    logits = pair_logits(discriminator, image, segmentation, judging)
    return float(torch.stack([scale.mean() for scale in logits]).mean())


def real_shares(
    discriminator: nn.Module, image: Tensor, segmentation: Tensor, judging: Judging
) -> list[tuple[float | None, int]]:
    """Of each structure the share of its patches that are judged real, and their number; None without any.

    A patch belongs to a structure that its part of the window meets: windows are divided evenly among their patches.
    The receptive field of a patch is larger and would take in nearly the whole window.
    """
    pool = adaptive_max_pool3d if image.ndim == 4 else adaptive_max_pool2d
    count = torch.zeros(2, len(judging.structures(segmentation)))
    for structures, scales in window_logits(discriminator, image, segmentation, judging):
        for logits in scales:
            meets = pool(structures[None], logits.shape)[0].flatten(1) > 0
            real = meets & (logits.flatten() > judging.threshold)
            count += torch.stack([real.sum(1), meets.sum(1)]).cpu()
    return [(float(real / n) if n else None, int(n)) for real, n in count.T]


@dataclass(frozen=True)
class DiscriminatorJudge:
    """Says of results what the discriminator takes them for."""

    discriminator: nn.Module  # in evaluation mode
    judging: Judging
    names: Mapping[int, str]  # structures by label

    @classmethod
    def open(cls, bundle: Bundle, device: str | torch.device = "cpu") -> DiscriminatorJudge | None:
        """The discriminator of a bundle, on ``device``; None unless it is accepted (:func:`discriminator_state`)."""
        found = discriminator_state(bundle)
        if found.state != "accepted" or found.acceptance is None:
            return None
        discriminator = read_discriminator(bundle).to(device)
        classes = bundle.output_channels
        how = Judging(found.acceptance.patch, classes, found.acceptance.threshold, regions=classes == 1)
        return cls(discriminator, how, bundle.labels)

    def judge(self, image: Tensor, crop: Crop) -> DiscriminatorVerdict:
        """Judge the labels of a crop on the prepared image ``(C, H, W, D)`` that it was cut from."""
        labels = torch.zeros((1, *image.shape[1:]), dtype=torch.uint8)
        labels[0][crop.slices] = most_probable(crop.probabilities).to(torch.uint8)
        return self.judge_labels(image, labels)

    def judge_labels(self, image: Tensor, labels: Tensor) -> DiscriminatorVerdict:
        """Judge a label map ``(1, H, W, D)`` on its prepared image ``(C, H, W, D)``."""
        found: list[tuple[float | None, int]] = [(None, 0)] * len(self.names)
        if bool(labels.any()):
            inside = (slice(None), *box_round(labels[0], self.judging.patch))
            segmentation = self.judging.segmentation(labels[inside])
            found = real_shares(self.discriminator, image[inside], segmentation, self.judging)
        shares = zip(sorted(self.names.items()), found, strict=True)
        return DiscriminatorVerdict(tuple(RealShare(label, name, *one) for (label, name), one in shares))


def box_round(mask: Tensor, least: Sequence[int], margin: int = MARGIN_VOXELS) -> tuple[slice, ...]:
    """Box round a mask ``(H, W[, D])`` that is not empty, with a margin, as large as ``least`` where there is room."""
    inside, sides = mask.nonzero(), []
    for low, high, side, extent in zip(inside.amin(0), inside.amax(0), least, mask.shape, strict=True):
        length = min(max(int(high - low) + 1 + 2 * margin, side), extent)
        start = min(max(int(low + high + 1 - length) // 2, 0), extent - length)
        sides.append(slice(start, start + length))
    return tuple(sides)


def accept_discriminator(
    discriminator: nn.Module,
    cases: Sequence[Mapping[str, Any]],
    judging: Judging,
    *,
    held_out: bool,
    weights_sha256: str = "",
    seed: int = 0,
) -> DiscriminatorAcceptance:
    """Try a discriminator on cases with a reference: does it tell the true segmentation from wrong ones?

    Parameters
    ----------
    discriminator
        Called with (image, segmentation), as in training; its mode is left as it is.
    cases
        Preprocessed, with ``image`` ``(C, H, W[, D])`` and ``label`` ``(1, H, W[, D])``, or a channel per region.
        Cases without a structure are not counted, nor, for a kind, those of which there is no wrong segmentation.
    judging
        How it sees them.
    held_out
        Whether the discriminator was not trained on them.
    weights_sha256
        Of the file that its weights will be read from.
    seed
        Of the wrong segmentations, which are drawn anew for every case and kind.
    """
    pairs = MismatchedPairs(overlapping=judging.regions)
    above: dict[MismatchKind, list[bool]] = {kind: [] for kind in KINDS}
    real: list[bool] = []
    boxes = list(_boxes(cases, judging))
    training = discriminator.training
    discriminator.eval()
    for number, (image, label) in enumerate(boxes):
        structures = judging.structures(judging.segmentation(label))
        another = None
        if len(boxes) > 1:  # its centre is that of its box, too
            other = judging.structures(judging.segmentation(boxes[number - 1][1]))
            another = torch.as_tensor(ResizeWithPadOrCrop(structures.shape[1:])(other))
        true = mean_logit(discriminator, image, judging.with_background(structures), judging)
        real.append(true > judging.threshold)
        for kind in KINDS:
            if not possible(kind, structures, another):
                continue
            generator = torch.Generator().manual_seed(seed + len(KINDS) * number + KINDS.index(kind))
            wrong = pairs.apply(structures, pairs.draw(kind, structures, generator), another)
            if not torch.equal(wrong, structures):
                above[kind].append(true > mean_logit(discriminator, image, judging.with_background(wrong), judging))
    discriminator.train(training)
    return DiscriminatorAcceptance(
        weights_sha256=weights_sha256,
        patch=judging.patch,
        threshold=judging.threshold,
        cases=len(real),
        held_out=held_out,
        real=Proportion.counted(sum(real), len(real)),
        above={kind: Proportion.counted(sum(found), len(found)) for kind, found in above.items() if found},
        left_out={kind: _WHY.get(kind, "no case has one") for kind, found in above.items() if not found},
    )


def _boxes(cases: Sequence[Mapping[str, Any]], judging: Judging) -> Iterator[tuple[Tensor, Tensor]]:
    """Image and label round the structures of each case that has one, where everything in the box is known."""
    for number in range(len(cases)):  # a data set of torch is no iterable
        case = cases[number]
        image, label = (convert_to_tensor(case[key], track_meta=False) for key in ("image", "label"))
        mask = (label > 0).any(0)
        if mask.any():
            inside = (slice(None), *box_round(mask, judging.patch))
            if bool((label[inside] >= 0).all()):  # what is not known is no reference
                yield image[inside], label[inside]
