"""All features of one case without its ground truth: confidence, shape, errors, agreement.

A feature that describes one structure ends in ``[label]``. They are the same when a calibration is fitted and when it
is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.trust.crop import Crop, most_probable, structure_box
from medseg.trust.error_net import ErrorNet

_LN_2 = 0.6931471805599453
_OF_ERROR_NET = ("critic-dice", "critic-invented", "critic-missed")


@dataclass(frozen=True)
class CaseFeatures:
    """What is known of one case."""

    values: Mapping[str, float]  # features by name
    shape: Mapping[str, float]  # those of them that the mask alone tells
    error_map: NDArray[np.float32]
    """``(H, W, D)`` on the grid of the crop, 0 to 1: the share of wrong labels expected round each voxel."""
    image: Tensor  # the box round the structures, ``(C, h, w, d)``
    probabilities: Tensor  # the same box, ``(K, h, w, d)``


def case_features(crop: Crop, error_net: ErrorNet | None) -> CaseFeatures:
    """Describe one case; without an error net the error map is what the softmax leaves open."""
    labels = most_probable(crop.probabilities)
    box = structure_box(labels)
    labels, probabilities = labels[box], crop.probabilities[(slice(None), *box)]
    image = crop.image[(slice(None), *box)].float()
    shape = shape_features(labels.numpy().astype(np.uint8), crop.spacing_mm, len(probabilities))
    values = confidence_features(probabilities, labels) | shape | border_features(labels, len(probabilities))
    if error_net is None:
        errors = 1.0 - probabilities.amax(0)
    else:
        estimate = error_net.estimate(image, probabilities)
        errors = estimate.error_map
        for label in range(1, len(probabilities)):
            size = max(float((labels == label).sum()), 1.0)
            invented = min(float(estimate.false_positives[label - 1]) / size, 1.0)
            missed = min(float(estimate.false_negatives[label - 1]) / size, 5.0)
            of_net = zip(_OF_ERROR_NET, (float(estimate.dice[label - 1]), invented, missed), strict=True)
            values |= {f"{name}[{label}]": value for name, value in of_net}
    error_map = np.zeros(crop.probabilities.shape[1:], dtype=np.float32)
    error_map[box] = errors.clamp(0, 1).numpy()
    return CaseFeatures(values, shape, error_map, image, probabilities)


def feature_names(classes: int, *, error_net: bool) -> frozenset[str]:
    """Names of the features that :func:`case_features` gives; ``classes`` counts the background."""
    nothing = torch.full((classes, 1, 1, 1), 1.0 / classes)
    known = confidence_features(nothing, torch.zeros(1, 1, 1, dtype=torch.long))
    known |= shape_features(np.zeros((1, 1, 1), np.uint8), (1.0, 1.0, 1.0), classes)
    known |= border_features(torch.zeros(1, 1, 1, dtype=torch.long), classes)
    of_net = (f"{name}[{label}]" for name in _OF_ERROR_NET for label in range(1, classes)) if error_net else ()
    return frozenset((*known, *of_net))


def confidence_features(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """What the softmax ``(K, H, W, D)`` and its most probable class ``(H, W, D)`` say.

    ``soft-dice[c]`` is Dice of the mask against its own probabilities, which is what Dice is expected to be if the
    probabilities are right (Borges et al. 2024, arXiv 2402.10665); ``mean-entropy[c]`` is entropy in bits over the
    voxels where the structure has a chance; ``unsure[c]`` is the share of the mask with less than 0.8.
    """
    values: dict[str, float] = {}
    entropy = torch.special.entr(probabilities.clamp_min(1e-9)).sum(0) / _LN_2
    ahead = probabilities.topk(2, 0)[0]
    margin = ahead[0] - ahead[1]
    for label in range(1, len(probabilities)):
        p, mask = probabilities[label], labels == label
        inside, size = p[mask], float(mask.sum())
        expected = 2 * float(inside.sum()) / max(float(p.sum()) + size, 1e-6)
        values[f"soft-dice[{label}]"] = expected if size else 0.0
        values[f"mean-entropy[{label}]"] = _mean(entropy[(p > 0.02) | mask], 1.0)
        values[f"mean-margin[{label}]"] = _mean(margin[mask], 0.0)
        values[f"unsure[{label}]"] = _mean((inside < 0.8).float(), 1.0)
        values[f"leaning[{label}]"] = (float(p.sum()) - size) / max(size, 1.0)
    values["entropy"] = _mean(entropy[(labels > 0) | (probabilities[0] < 0.98)], 1.0)
    return values


def _mean(values: Tensor, otherwise: float) -> float:
    return float(values.mean()) if values.numel() else otherwise


def shape_features(labels: NDArray[np.uint8], spacing_mm: Sequence[float], classes: int) -> dict[str, float]:
    """Volume, pieces, extents, compactness and position of every structure of a label map ``(H, W, D)``.

    ``classes`` counts the background. All are finite, also for a structure that was not found. ``surface[c]`` is the
    share of voxels with a neighbour outside, relative to that of a ball; ``offset-x``, ``-y`` and ``-z[c]`` lead from
    the centre of all structures to that of this one, in mm; ``other[c]`` is the log ratio of its volume to that of the
    others.
    """
    voxel_ml = math.prod(spacing_mm) / 1000.0
    step = np.asarray(spacing_mm, dtype=np.float64)
    values: dict[str, float] = {}
    total = int((labels > 0).sum())
    middle = np.argwhere(labels > 0).mean(axis=0) if total else np.zeros(3)
    for label in range(1, classes):
        mask = labels == label
        count = int(mask.sum())
        where = np.argwhere(mask) if count else np.zeros((1, 3))
        extent = np.sort((np.ptp(where, axis=0) + 1) * step)[::-1] if count else np.zeros(3)
        offset = (where.mean(axis=0) - middle) * step if count else np.zeros(3)
        values[f"log-volume[{label}]"] = math.log(max(count * voxel_ml, 1e-3))
        values[f"other[{label}]"] = math.log((count + 1.0) / (total - count + 1.0)) if classes > 2 else 0.0
        values |= {f"extent-{i}[{label}]": float(e) for i, e in enumerate(extent)}
        values |= {f"offset-{axis}[{label}]": float(o) for axis, o in zip("xyz", offset, strict=True)}
        values |= {f"{name}[{label}]": value for name, value in _pieces(mask, where, count).items()}
    return values


def _pieces(mask: NDArray[np.bool_], where: NDArray[Any], count: int) -> dict[str, float]:
    if not count:
        return {"pieces": 0.0, "largest": 0.0, "surface": 0.0}
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = np.pad(mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], 1)
    pieces, number = cc3d.connected_components(box, connectivity=26, return_N=True)
    inner = box.copy()
    for axis in range(3):
        inner &= np.roll(box, 1, axis) & np.roll(box, -1, axis)
    rim = count - int(inner.sum())
    ball = 4.836 * count ** (2 / 3)  # surface of the ball of this volume, in voxel faces
    largest = int(np.bincount(pieces.ravel())[1:].max())
    return {"pieces": math.log(float(number)), "largest": largest / count, "surface": rim / ball}


def border_features(labels: Tensor, classes: int) -> dict[str, float]:
    """How far the structures of a label map ``(H, W, D)`` run into its outermost layer of voxels.

    The surroundings that are judged with the structures end at the volume alone: what lies in that layer may go on
    where nobody has looked. ``at-border[c]`` is the share of the structure's voxels there, ``faces[c]`` the share of
    the six faces of its box; both are 0 for a structure that was not found.
    """
    values: dict[str, float] = {}
    inner = labels[1:-1, 1:-1, 1:-1]
    ends = [labels.select(axis, end) for axis in range(3) for end in (0, -1)]
    for label in range(1, classes):
        size = int((labels == label).sum())
        values[f"at-border[{label}]"] = 1.0 - int((inner == label).sum()) / size if size else 0.0
        values[f"faces[{label}]"] = sum(bool((end == label).any()) for end in ends) / len(ends)
    return values


def agreement_features(first: Tensor, second: Tensor) -> dict[str, float]:
    """How well two probabilities ``(K, h, w, d)`` of one box agree, per structure.

    ``agreement[c]`` is Dice of both masks, ``soft-agreement[c]`` of both probabilities, ``growth[c]`` the log ratio of
    the second volume to the first.
    """
    values: dict[str, float] = {}
    one, two = most_probable(first), most_probable(second)
    for label in range(1, len(first)):
        a, b, p, q = one == label, two == label, first[label], second[label]
        n, m = float(a.sum()), float(b.sum())
        values[f"agreement[{label}]"] = 2 * float((a & b).sum()) / (n + m) if n + m else 0.0
        values[f"soft-agreement[{label}]"] = 2 * float((p * q).sum()) / max(float((p * p).sum() + (q * q).sum()), 1e-6)
        values[f"growth[{label}]"] = math.log((m + 10.0) / (n + 10.0))
    return values
