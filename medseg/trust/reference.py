"""What the training cases looked like to the network, and how far held-out cases lay from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.files import write_json
from medseg.trust.novelty import Likeness, Onlooker, encoder_layers, fit_likeness, image_statistics, smallest_divisor
from medseg.trust.region import found_labels, look_box, region_of
from medseg.trust.scores import Scored, agreement_scores
from medseg.trust.shape import shape_scores
from medseg.trust.stored import read_stored

__all__ = ["REFERENCE_NAME", "Reference", "SecondLook", "fit_reference", "limits_of"]

REFERENCE_NAME = "trust/reference.json"
_FORMAT = "medseg-trust-reference-1"

Floats = NDArray[np.float64]

_FLOOR = {"encoder": 1e-3, "image": 0.02, "shape": 0.05}
"""Smallest spread of a feature: every training mask may be of one piece, and another of two is not impossible."""


class SecondLook(NamedTuple):
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
class Reference:
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
    likeness: Mapping[str, Likeness]
    limits: Mapping[str, float]
    weights_sha256: str

    def second_look(self, network: nn.Module, scored: Scored) -> SecondLook:
        """Let the network look at a scored case once more, in a box round the structures."""
        box = (slice(None), *look_box(found_labels(scored.probabilities)))
        look = Onlooker(network, self.layers, self.divisor)(scored.image[box])
        features = {"encoder": look.features, **_plain_features(scored.image, scored.shape)}
        scores = {f"{name}-distance": self.likeness[name].distance(values) for name, values in features.items()}
        scores |= agreement_scores(scored.probabilities[box], look.probabilities)
        return SecondLook(scores, np.concatenate([look.features, features["image"]]))

    def flags(self, scores: Mapping[str, float]) -> tuple[str, ...]:
        """``"unlike-training"`` for the image, ``"implausible-shape"`` for the mask, from :meth:`second_look`."""
        over = {name for name, limit in self.limits.items() if not scores[f"{name}-distance"] <= limit}
        found = ["unlike-training"] if over & {"encoder", "image"} else []
        return tuple(found + (["implausible-shape"] if "shape" in over else []))

    def write(self, path: Path) -> None:
        """Write plain JSON, whole or not at all."""
        write_json(path, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str]) -> Reference:
        """Read one; nothing in it is executed.

        Raises
        ------
        BundleError
            If the file is something else or belongs to other weights.
        """
        return read_stored(path, "trust reference", _from_json, weights_sha256)


def _from_json(content: Mapping[str, Any]) -> Reference:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r}, expected {_FORMAT!r}")
    likeness = {str(name): Likeness.from_json(value) for name, value in content["likeness"].items()}
    if set(likeness) != {"encoder", "image", "shape"} or not set(content["limits"]) <= set(likeness):
        raise ValueError("it does not tell of the encoder, the image and the shape")
    limits = {str(name): float(value) for name, value in content["limits"].items()}
    layers, divisor = tuple(map(str, content["layers"])), int(content["divisor"])
    if not 1 <= divisor <= 64:
        raise ValueError(f"divisor {divisor}")
    return Reference(layers, divisor, likeness, limits, str(content["weights_sha256"]))


def _plain_features(image: Tensor, shape: Mapping[str, float]) -> dict[str, Floats]:
    return {"image": image_statistics(image), "shape": np.array([shape[name] for name in sorted(shape)])}


def fit_reference(
    network: nn.Module,
    cases: Sequence[tuple[Tensor, NDArray[np.uint8], Sequence[float]]],
    classes: int,
    weights_sha256: str,
) -> Reference:
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
        rows["encoder"].append(Onlooker(network, layers, divisor)(seen).features)
        shape = shape_scores(reference[box], spacing_mm, classes)
        for name, values in _plain_features(image[(slice(None), *box)].float(), shape).items():
            rows[name].append(values)
    likeness = {name: fit_likeness(np.array(values), floor=_FLOOR[name]) for name, values in rows.items()}
    return Reference(layers, divisor, likeness, {}, weights_sha256)


def limits_of(distances: Mapping[str, Sequence[float]], false_flags: float) -> dict[str, float]:
    """Distances that held-out cases exceed with at most the stated probability, all kinds of distance together."""
    limits = {}
    for name, values in distances.items():
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        rank = int(np.ceil((len(ordered) + 1) * (1.0 - false_flags / len(distances))))
        limits[name] = float(ordered[min(rank, len(ordered)) - 1])
    return limits
