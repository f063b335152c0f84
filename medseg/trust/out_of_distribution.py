"""How far a case lies from those the network was trained on.

The network labels the structures once more, in a small box; the means and spreads of its encoder's channels at several
depths, and plain statistics of the image, describe the case. Their distance from the training cases (Mahalanobis, with
the covariance shrunk as Ledoit and Wolf do, JMVA 88:365, 2004; Lee et al. 2018, arXiv 1807.03888) is compared with a
threshold that a stated share of held-out cases exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.json_shape import TEXT, Spec, number, whole
from medseg.results.verdict import IMPLAUSIBLE_SHAPE, UNLIKE_TRAINING
from medseg.trust.crop import most_probable, reinference_box, structure_box
from medseg.trust.features import CaseFeatures, agreement_features, shape_features
from medseg.trust.fit_cases import TrainingCase
from medseg.trust.stored import SMALLEST_SPREAD, SPREADS, STATISTICS, StoredPart

Floats = NDArray[np.float64]

_FLOOR = {"encoder": 1e-3, "image": 0.02, "shape": 0.05}
"""Smallest spread of a feature: every training mask may be of one piece, and another of two is not impossible."""
_MOST_AXES = 48
_SHORTEST = 20


@dataclass(frozen=True)
class OODDetector:
    """What training cases look like, as numbers: centre, scale and the shrunk covariance by its principal axes."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...]  # of the scaled features, one per row
    spread: tuple[float, ...]  # standard deviation along each axis after shrinkage
    rest: float  # the standard deviation in all other directions

    def distance(self, features: Floats) -> float:
        """Mahalanobis distance per feature: about 1 for a training case."""
        scaled = (features - np.array(self.mean)) / np.array(self.scale)
        if not np.isfinite(scaled).all():
            return math.inf
        along = np.array(self.axes) @ scaled
        off = max(float(scaled @ scaled - along @ along), 0.0)
        squared = float(((along / np.array(self.spread)) ** 2).sum()) + off / self.rest**2
        return math.sqrt(squared / len(scaled))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> OODDetector:
        """From what fits :data:`_DETECTOR`; a ``ValueError`` if its lists do not fit together."""
        mean, scale, spread = (tuple(content[name]) for name in ("mean", "scale", "spread"))
        axes, rest = tuple(map(tuple, content["axes"])), content["rest"]
        if not mean or len(scale) != len(mean) or any(len(row) != len(mean) for row in axes):
            raise ValueError("the numbers of a detector do not fit together")
        if len(axes) != len(spread):
            raise ValueError("a detector has not one spread for each axis")
        return cls(mean, scale, axes, spread, rest)


def fit_ood_detector(features: Floats, floor: float = 1e-3) -> OODDetector:
    """Describe training cases ``(cases, features)``; what never varies in training may vary by ``floor``."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = features.mean(axis=0)
    scale = np.maximum(features.std(axis=0), floor)
    scaled = (features - mean) / scale
    shrinkage = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
    _, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    number = min(_MOST_AXES, len(features) - 1, int((singular > 1e-6).sum()))
    variance = singular**2 / len(features)
    average = float(variance.sum() / scaled.shape[1])
    left = max(float(variance[number:].sum()) / max(scaled.shape[1] - number, 1), 0.0)
    spread = np.sqrt((1 - shrinkage) * variance[:number] + shrinkage * average)
    rest = math.sqrt(max((1 - shrinkage) * left + shrinkage * average, 1e-6))
    rows = tuple(tuple(np.round(row, 6).tolist()) for row in axes[:number])
    return OODDetector(tuple(mean.tolist()), tuple(scale.tolist()), rows, tuple(spread.tolist()), rest)


_DETECTOR: Spec = {
    "mean!": STATISTICS,
    "scale!": SPREADS,
    "axes!": [STATISTICS],
    "spread!": SPREADS,
    "rest!": number(SMALLEST_SPREAD, 1e12),
}


class Reinference(NamedTuple):
    """What the network says of a case when it labels the structures once more, in a small box."""

    features: dict[str, float]  # distances from the training cases, and how well both results agree, by name
    embedding: Floats  # means and spreads of the encoder's channels, then statistics of the image


@dataclass(frozen=True)
class TrainingStatistics(StoredPart):
    """What a bundle's ``trust/reference.json`` says of the training cases."""

    what = "trust reference"
    file_format = "medseg-trust-reference-1"
    form: ClassVar[Spec] = {
        "layers!": [TEXT],
        "divisor!": whole(1, 64),
        "likeness!": {f"{name}!": _DETECTOR for name in _FLOOR},
        "limits!": {"*": number(0.0, 1e12)},
        "weights_sha256!": TEXT,
    }

    layers: tuple[str, ...]  # modules of the network whose channels are looked at
    divisor: int  # sides of the network's input are multiples of it
    detectors: Mapping[str, OODDetector]  # for ``"encoder"``, ``"image"`` and ``"shape"``
    limits: Mapping[str, float]  # distances above which a case is flagged; one that is missing flags nothing
    weights_sha256: str  # the weights whose encoder it is

    def reinfer(self, network: nn.Module, case: CaseFeatures) -> Reinference:
        """Let the network label a case once more, in a box round the structures."""
        box = (slice(None), *reinference_box(most_probable(case.probabilities)))
        encoded, probabilities = encode(network, case.image[box], self.layers, self.divisor)
        described = {"encoder": encoded, **_plain_features(case.image, case.shape)}
        features = {f"{name}-distance": self.detectors[name].distance(values) for name, values in described.items()}
        features |= agreement_features(case.probabilities[box], probabilities)
        return Reinference(features, np.concatenate([encoded, described["image"]]))

    def feature_names(self, classes: int) -> frozenset[str]:
        """Names of the features that :meth:`reinfer` gives; ``classes`` counts the background."""
        nothing = torch.full((classes, 1, 1, 1), 1.0 / classes)
        return frozenset((*(f"{name}-distance" for name in self.detectors), *agreement_features(nothing, nothing)))

    def flags(self, features: Mapping[str, float]) -> tuple[str, ...]:
        """``"unlike-training"`` for the image, ``"implausible-shape"`` for the mask, from :meth:`reinfer`."""
        over = {name for name, limit in self.limits.items() if not features[f"{name}-distance"] <= limit}
        flags = ((UNLIKE_TRAINING, {"encoder", "image"}), (IMPLAUSIBLE_SHAPE, {"shape"}))
        return tuple(flag for flag, names in flags if over & names)

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "layers": list(self.layers),
            "divisor": self.divisor,
            "likeness": {name: asdict(detector) for name, detector in self.detectors.items()},
            "limits": dict(self.limits),
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingStatistics:
        """From what fits :attr:`form`."""
        detectors = {name: OODDetector.from_json(value) for name, value in content["likeness"].items()}
        if set(detectors) != set(_FLOOR) or not set(content["limits"]) <= set(detectors):
            raise ValueError("it does not tell of the encoder, the image and the shape")
        layers = tuple(content["layers"])
        if not layers or len(set(layers)) < len(layers):
            raise ValueError("it names no layers of the network, or one twice")
        limits = {name: float(value) for name, value in content["limits"].items()}
        return cls(layers, content["divisor"], detectors, limits, content["weights_sha256"])


def fit_training_statistics(
    network: nn.Module, cases: Sequence[TrainingCase], classes: int, weights_sha256: str
) -> TrainingStatistics:
    """Describe training cases; the limits are found elsewhere, on cases that the network has not seen.

    The network is in evaluation mode; ``classes`` counts the background.
    """
    rows: dict[str, list[Floats]] = {name: [] for name in _FLOOR}
    layers: tuple[str, ...] = ()
    divisor = 0
    for case in cases:
        labels = torch.from_numpy(np.ascontiguousarray(case.reference))
        box, small = structure_box(labels), (slice(None), *reinference_box(labels))
        image = case.image[small].float()
        divisor = divisor or smallest_divisor(network, image.shape[0])
        layers = layers or encoder_layers(network, image)
        shape = shape_features(case.reference[box], case.spacing_mm, classes)
        described = _plain_features(case.image[(slice(None), *box)].float(), shape)
        for name, values in {"encoder": encode(network, image, layers, divisor)[0], **described}.items():
            rows[name].append(values)
    detectors = {name: fit_ood_detector(np.array(values), _FLOOR[name]) for name, values in rows.items()}
    return TrainingStatistics(layers, divisor, detectors, {}, weights_sha256)


def limits_of(distances: Mapping[str, Sequence[float]], false_flags: float) -> dict[str, float]:
    """Distances that held-out cases exceed with at most the stated probability, all kinds of distance together."""
    limits = {}
    for name, values in distances.items():
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        rank = int(np.ceil((len(ordered) + 1) * (1.0 - false_flags / len(distances))))
        limits[name] = float(ordered[min(rank, len(ordered)) - 1])
    return limits


@torch.inference_mode()
def encode(network: nn.Module, image: Tensor, layers: Sequence[str], divisor: int) -> tuple[Floats, Tensor]:
    """What a network's encoder sees in a box ``(C, h, w, d)``, and what the network says of it ``(K, h, w, d)``.

    The first are means and spreads of the channels of each layer; sides of the input are made multiples of ``divisor``.
    """
    outputs: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        maps = output[0].cpu().flatten(1).double()  # MPS has no double precision
        outputs[name] = torch.cat([maps.mean(1), maps.std(1, correction=0)])

    scores = _observed(network, layers, note, _padded(image, divisor))[0].cpu()
    scores = scores[(slice(None), *(slice(0, n) for n in image.shape[1:]))].float()
    if len(scores) == 1:  # the softmax of these two is the sigmoid
        scores = torch.cat([torch.zeros_like(scores), scores])
    return torch.cat([outputs[name] for name in layers]).numpy(), scores.softmax(0)


def encoder_layers(network: nn.Module, image: Tensor) -> tuple[str, ...]:
    """The last module of every resolution on the way down, from the second resolution to the deepest.

    For any network whose grids shrink and grow again, tried on an image ``(C, H, W, D)``.
    """
    seen: list[tuple[str, int]] = []

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 5:
            seen.append((name, math.prod(output.shape[2:])))

    with torch.inference_mode():
        _observed(network, [name for name, _ in network.named_modules() if name], note, _padded(image, 16))
    smallest = min(size for _, size in seen)
    last = max(i for i, (_, size) in enumerate(seen) if size == smallest)
    way_down = {size: name for name, size in seen[: last + 1]}  # the last of each size stays
    sizes = sorted(way_down, reverse=True)
    return tuple(way_down[size] for size in sizes[1:] or sizes)


def _observed(network: nn.Module, layers: Sequence[str], note: Callable[[str, Any], None], image: Tensor) -> Tensor:
    """Run a network on one image; ``note`` gets the name and the output of each of the layers."""
    modules = dict(network.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: note(name, output)) for name in layers
    ]
    try:
        answer: Tensor = network(image[None].to(_device_of(network)))
    finally:
        for hook in hooks:
            hook.remove()
    return answer


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def smallest_divisor(network: nn.Module, channels: int) -> int:
    """What the sides of a network's input must be multiples of; at least 4."""
    for divisor in (4, 8, 16):
        side = 6 * divisor if divisor < 16 else 48
        try:
            with torch.inference_mode():
                network(torch.zeros(1, channels, side + divisor, side, side, device=_device_of(network)))
        except (RuntimeError, ValueError):
            continue
        return divisor
    return 32


def _padded(image: Tensor, divisor: int) -> Tensor:
    """More of the last voxels at the end of each axis, up to a multiple and at least 32."""
    ends: list[int] = []
    for n in reversed(image.shape[1:]):
        ends += [0, -n % divisor if n >= _SHORTEST else max(32, divisor) - n]
    return torch.nn.functional.pad(image[None], ends, mode="replicate")[0] if any(ends) else image


def _plain_features(image: Tensor, shape: Mapping[str, float]) -> dict[str, Floats]:
    return {"image": image_statistics(image), "shape": np.array([shape[name] for name in sorted(shape)])}


def image_statistics(image: Tensor) -> Floats:
    """Plain statistics of an image ``(C, H, W, D)`` that tell contrast, noise and sharpness.

    Per channel: seven quantiles, skewness, kurtosis, and along each axis how similar neighbours at one and two voxels
    are.
    """
    statistics: list[float] = []
    for channel in image:
        volume = channel.double()
        flat = volume.flatten()
        mean, std = float(flat.mean()), max(float(flat.std(correction=0)), 1e-6)
        scaled = (flat - mean) / std
        statistics += np.quantile(flat.numpy(), [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]).tolist()
        statistics += [float((scaled**3).mean()), math.log(float((scaled**4).mean()) + 1e-6), math.log(std)]
        for axis in range(3):
            for step in (1, 2):
                n = volume.shape[axis]
                later = volume.narrow(axis, min(step, n), max(n - step, 0))
                squared = (later - volume.narrow(axis, 0, max(n - step, 0))) ** 2
                statistics.append(math.log(float(squared.mean()) / std**2 + 1e-6) if squared.numel() else 0.0)
    return np.array(statistics)
