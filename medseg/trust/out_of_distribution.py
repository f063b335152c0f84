"""How far a case lies from those the network was trained on.

Is this a case like those the network was trained on?

The network looks at the structures once more, in a small box; the means and spreads of its encoder's channels at
several depths, and plain statistics of the image, describe it. Their distance from the training cases (Mahalanobis,
with the covariance shrunk as Ledoit and Wolf do, JMVA 88:365, 2004; Lee et al. 2018, arXiv 1807.03888) is compared with
a threshold that a stated share of held-out cases exceeds.

What the training cases looked like to the network, and how far held-out cases lay from them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.files import write_json
from medseg.trust.crop import found_labels, look_box, region_of
from medseg.trust.features import CaseFeatures, agreement_scores, shape_features
from medseg.trust.stored import SMALLEST_SPREAD, numbers, read_stored

Floats = NDArray[np.float64]

_SHORTEST = 20


@dataclass(frozen=True)
class Look:
    """What a network says of a box.

    Parameters
    ----------
    features
        Means and spreads of its channels on the way down.
    probabilities
        ``(K, h, w, d)`` on the box.
    """

    features: Floats
    probabilities: Tensor


class FeatureExtractor:
    """Looks at a box with the network that made the result: what its encoder sees, and what it says this time.

    Parameters
    ----------
    network
        In evaluation mode.
    layers
        Names of the modules to look at, see :func:`encoder_layers`.
    divisor
        Sides of boxes are made multiples of it.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], divisor: int = 16) -> None:
        self._network, self._layers, self._divisor = network, tuple(layers), divisor

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Look:
        """Look at an image ``(C, h, w, d)``."""
        found: dict[str, Tensor] = {}

        def hook(name: str) -> Any:
            def look(_: nn.Module, __: Any, output: Tensor) -> None:
                maps = output[0].flatten(1).double()
                found[name] = torch.cat([maps.mean(1), maps.std(1, correction=0)])

            return look

        modules = dict(self._network.named_modules())
        hooks = [modules[name].register_forward_hook(hook(name)) for name in self._layers]
        try:
            answer = self._network(_padded(image, self._divisor)[None])[0]
        finally:
            for handle in hooks:
                handle.remove()
        answer = answer[(slice(None), *(slice(0, n) for n in image.shape[1:]))].float()
        if len(answer) == 1:  # the softmax of these two is the sigmoid
            answer = torch.cat([torch.zeros_like(answer), answer])
        features = torch.cat([found[name] for name in self._layers]).cpu().numpy()
        return Look(features, answer.softmax(0).cpu())


def encoder_layers(network: nn.Module, image: Tensor) -> tuple[str, ...]:
    """The last module of every resolution on the way down, from the second resolution to the deepest.

    Parameters
    ----------
    network
        Any network whose grids shrink and grow again.
    image
        An image ``(C, H, W, D)`` to try it on.
    """
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 5:
                seen.append((name, math.prod(output.shape[2:])))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if name]
    with torch.inference_mode():
        network(_padded(image, 16)[None])
    for handle in hooks:
        handle.remove()
    smallest = min(size for _, size in seen)
    last = max(i for i, (_, size) in enumerate(seen) if size == smallest)
    way_down = {size: name for name, size in seen[: last + 1]}  # the last of each size stays
    sizes = sorted(way_down, reverse=True)
    return tuple(way_down[size] for size in sizes[1:] or sizes)


def smallest_divisor(network: nn.Module, channels: int) -> int:
    """What the sides of a network's input must be multiples of; at least 4."""
    for divisor in (4, 8, 16):
        side = 6 * divisor if divisor < 16 else 48
        try:
            with torch.inference_mode():
                network(torch.zeros(1, channels, side + divisor, side, side))
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
        levels = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99], dtype=torch.float64)
        statistics += np.quantile(flat.numpy(), levels.numpy()).tolist()
        statistics += [float((scaled**3).mean()), math.log(float((scaled**4).mean()) + 1e-6), math.log(std)]
        for axis in range(3):
            for step in (1, 2):
                difference = volume.diff(dim=axis) if step == 1 else _second(volume, axis)
                statistics.append(
                    math.log(float((difference**2).mean()) / std**2 + 1e-6) if difference.numel() else 0.0
                )
    return np.array(statistics)


def _second(volume: Tensor, axis: int) -> Tensor:
    n = volume.shape[axis]
    return volume.narrow(axis, min(2, n), max(n - 2, 0)) - volume.narrow(axis, 0, max(n - 2, 0))


@dataclass(frozen=True)
class OODDetector:
    """What training cases look like, as numbers: centre, scale and the shrunk covariance by its principal axes.

    Parameters
    ----------
    mean, scale
        Per feature.
    axes
        Principal axes of the scaled features, one per row.
    spread
        Standard deviation along each axis after shrinkage.
    rest
        The standard deviation in all other directions after shrinkage.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]
    rest: float

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
        """From what JSON made of one."""
        axes = tuple(numbers(row) for row in content["axes"])
        found = cls(
            numbers(content["mean"]),
            numbers(content["scale"]),
            axes,
            numbers(content["spread"]),
            *numbers([content["rest"]]),
        )
        n = len(found.mean)
        if n == 0 or len(found.scale) != n or any(len(row) != n for row in axes) or len(axes) != len(found.spread):
            raise ValueError("the numbers of a likeness do not fit together")
        if min(*found.scale, *found.spread, found.rest) < SMALLEST_SPREAD:
            raise ValueError("a spread is not positive")
        return found


def fit_ood_detector(features: Floats, most: int = 48, floor: float = 1e-3) -> OODDetector:
    """Describe training cases ``(cases, features)``.

    Parameters
    ----------
    features
        One row per case.
    most
        Largest number of principal axes kept.
    floor
        Smallest standard deviation of a feature: what never varies in training may vary this much.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = features.mean(axis=0)
    scale = np.maximum(features.std(axis=0), floor)
    scaled = (features - mean) / scale
    shrinkage = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
    _, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    number = min(most, len(features) - 1, int((singular > 1e-6).sum()))
    variance = singular**2 / len(features)
    average = float(variance.sum() / scaled.shape[1])
    left = max(float(variance[number:].sum()) / max(scaled.shape[1] - number, 1), 0.0)
    spread = np.sqrt((1 - shrinkage) * variance[:number] + shrinkage * average)
    rest = math.sqrt(max((1 - shrinkage) * left + shrinkage * average, 1e-6))
    rows = tuple(tuple(np.round(row, 6).tolist()) for row in axes[:number])
    return OODDetector(tuple(mean.tolist()), tuple(scale.tolist()), rows, tuple(spread.tolist()), rest)


REFERENCE_NAME = "trust/reference.json"
_FORMAT = "medseg-trust-reference-1"


_FLOOR = {"encoder": 1e-3, "image": 0.02, "shape": 0.05}
"""Smallest spread of a feature: every training mask may be of one piece, and another of two is not impossible."""


class Reinference(NamedTuple):
    """What the network says of a scored case when it looks once more.

    Parameters
    ----------
    scores
        Distances from the training cases, and whether it agrees with the first look, by name.
    description
        Means and spreads of its encoder's channels, then statistics of the image.
    """

    scores: dict[str, float]
    description: Floats


@dataclass(frozen=True)
class TrainingStatistics:
    """What a bundle's ``trust/reference.json`` says.

    Parameters
    ----------
    layers
        Modules of the network whose channels are looked at.
    divisor
        Sides of the network's input are multiples of it.
    likeness
        ``"encoder"``, ``"image"`` and ``"shape"``: what training cases look like there.
    limits
        Distances above which a case is flagged; one that is missing flags nothing.
    weights_sha256
        The weights whose encoder it is.
    """

    layers: tuple[str, ...]
    divisor: int
    likeness: Mapping[str, OODDetector]
    limits: Mapping[str, float]
    weights_sha256: str

    def second_look(self, network: nn.Module, scored: CaseFeatures) -> Reinference:
        """Let the network look at a scored case once more, in a box round the structures."""
        box = (slice(None), *look_box(found_labels(scored.probabilities)))
        look = FeatureExtractor(network, self.layers, self.divisor)(scored.image[box])
        features = {"encoder": look.features, **_plain_features(scored.image, scored.shape)}
        scores = {f"{name}-distance": self.likeness[name].distance(values) for name, values in features.items()}
        scores |= agreement_scores(scored.probabilities[box], look.probabilities)
        return Reinference(scores, np.concatenate([look.features, features["image"]]))

    def flags(self, scores: Mapping[str, float]) -> tuple[str, ...]:
        """``"unlike-training"`` for the image, ``"implausible-shape"`` for the mask, from :meth:`second_look`."""
        over = {name for name, limit in self.limits.items() if not scores[f"{name}-distance"] <= limit}
        found = ["unlike-training"] if over & {"encoder", "image"} else []
        return tuple(found + (["implausible-shape"] if "shape" in over else []))

    def write(self, path: Path) -> None:
        """Write plain JSON, whole or not at all."""
        write_json(path, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str]) -> TrainingStatistics:
        """Read one; nothing in it is executed.

        Raises
        ------
        BundleError
            If the file is something else or belongs to other weights.
        """
        return read_stored(path, "trust reference", _from_json, weights_sha256)


def _from_json(content: Mapping[str, Any]) -> TrainingStatistics:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r}, expected {_FORMAT!r}")
    likeness = {str(name): OODDetector.from_json(value) for name, value in content["likeness"].items()}
    if set(likeness) != {"encoder", "image", "shape"} or not set(content["limits"]) <= set(likeness):
        raise ValueError("it does not tell of the encoder, the image and the shape")
    limits = {str(name): float(value) for name, value in content["limits"].items()}
    layers, divisor = tuple(map(str, content["layers"])), int(content["divisor"])
    if not 1 <= divisor <= 64:
        raise ValueError(f"divisor {divisor}")
    return TrainingStatistics(layers, divisor, likeness, limits, str(content["weights_sha256"]))


def _plain_features(image: Tensor, shape: Mapping[str, float]) -> dict[str, Floats]:
    return {"image": image_statistics(image), "shape": np.array([shape[name] for name in sorted(shape)])}


def fit_training_statistics(
    network: nn.Module,
    cases: Sequence[tuple[Tensor, NDArray[np.uint8], Sequence[float]]],
    classes: int,
    weights_sha256: str,
) -> TrainingStatistics:
    """Look at training cases; the limits are found elsewhere, on cases that the network has not seen.

    Parameters
    ----------
    network
        In evaluation mode.
    cases
        Image ``(C, H, W, D)`` as the network saw it, reference ``(H, W, D)`` and voxel size of every training case.
    classes
        Number of classes with the background.
    weights_sha256
        Of the network.
    """
    rows: dict[str, list[Floats]] = {"encoder": [], "image": [], "shape": []}
    layers: tuple[str, ...] = ()
    divisor = smallest_divisor(network, cases[0][0].shape[0])
    for image, reference, spacing_mm in cases:
        labels = torch.from_numpy(np.ascontiguousarray(reference))
        box, small = region_of(labels), (slice(None), *look_box(labels))
        seen = image[small].float()
        layers = layers or encoder_layers(network, seen)
        rows["encoder"].append(FeatureExtractor(network, layers, divisor)(seen).features)
        shape = shape_features(reference[box], spacing_mm, classes)
        for name, values in _plain_features(image[(slice(None), *box)].float(), shape).items():
            rows[name].append(values)
    likeness = {name: fit_ood_detector(np.array(values), floor=_FLOOR[name]) for name, values in rows.items()}
    return TrainingStatistics(layers, divisor, likeness, {}, weights_sha256)


def limits_of(distances: Mapping[str, Sequence[float]], false_flags: float) -> dict[str, float]:
    """Distances that held-out cases exceed with at most the stated probability, all kinds of distance together."""
    limits = {}
    for name, values in distances.items():
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        rank = int(np.ceil((len(ordered) + 1) * (1.0 - false_flags / len(distances))))
        limits[name] = float(ordered[min(rank, len(ordered)) - 1])
    return limits
