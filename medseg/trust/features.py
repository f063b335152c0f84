"""All features of one case without its ground truth: confidence, shape, agreement.

What the network's own probabilities say about its result.

What the mask alone says: is this what such a structure looks like?

All scores of one case, without its ground truth: the same when a calibration is fitted and when it is used.
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

from medseg.trust.crop import found_labels, region_of
from medseg.trust.error_net import ErrorNet

_NOTHING = 1e-6


def confidence_features(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of the softmax, per structure as ``NAME[label]``, and of the whole case.

    Parameters
    ----------
    probabilities
        ``(K, H, W, D)``, background first.
    labels
        Most probable class ``(H, W, D)``.

    Notes
    -----
    ``soft-dice[c]`` is Dice of the mask against its own probabilities, which is what Dice is expected to be if the
    probabilities are right (Borges et al. 2024, arXiv 2402.10665); ``mean-entropy[c]`` is entropy in bits over the
    voxels where the structure has a chance; ``unsure[c]`` is the share of the mask with less than 0.8.
    """
    scores: dict[str, float] = {}
    entropy = torch.special.entr(probabilities.clamp_min(1e-9)).sum(0) / 0.6931471805599453
    ahead = probabilities.topk(2, 0)[0]
    margin = ahead[0] - ahead[1]
    for label in range(1, len(probabilities)):
        p, mask = probabilities[label], labels == label
        inside, size = p[mask], float(mask.sum())
        chance = (p > 0.02) | mask
        expected = 2 * float(inside.sum()) / max(float(p.sum()) + size, _NOTHING)
        scores[f"soft-dice[{label}]"] = expected if size else 0.0
        scores[f"mean-entropy[{label}]"] = _mean(entropy[chance], 1.0)
        scores[f"mean-margin[{label}]"] = _mean(margin[mask], 0.0)
        scores[f"unsure[{label}]"] = _mean((inside < 0.8).float(), 1.0)
        scores[f"leaning[{label}]"] = (float(p.sum()) - size) / max(size, 1.0)
    scores["entropy"] = _mean(entropy[(labels > 0) | (probabilities[0] < 0.98)], 1.0)
    return scores


def _mean(values: Tensor, otherwise: float) -> float:
    return float(values.mean()) if values.numel() else otherwise


def shape_features(labels: NDArray[np.uint8], spacing_mm: Sequence[float], classes: int) -> dict[str, float]:
    """Volume, pieces, extents, compactness and position of every structure, as ``NAME[label]``.

    Parameters
    ----------
    labels
        Label map ``(H, W, D)``.
    spacing_mm
        Voxel size.
    classes
        Number of classes with the background.

    Notes
    -----
    All are finite, also for a structure that was not found. ``surface[c]`` is the share of voxels with a neighbour
    outside, relative to that of a ball; ``offset-x``, ``-y`` and ``-z[c]`` lead from the centre of all structures to
    that of this one, in mm; ``other[c]`` is the log ratio of its volume to that of the others.
    """
    voxel_ml = math.prod(spacing_mm) / 1000.0
    step = np.asarray(spacing_mm, dtype=np.float64)
    scores: dict[str, float] = {}
    total = int((labels > 0).sum())
    middle = np.argwhere(labels > 0).mean(axis=0) if total else np.zeros(3)
    for label in range(1, classes):
        mask = labels == label
        count = int(mask.sum())
        where = np.argwhere(mask) if count else np.zeros((1, 3))
        extent = np.sort((np.ptp(where, axis=0) + 1) * step)[::-1] if count else np.zeros(3)
        offset = (where.mean(axis=0) - middle) * step if count else np.zeros(3)
        scores[f"log-volume[{label}]"] = math.log(max(count * voxel_ml, 1e-3))
        scores[f"other[{label}]"] = math.log((count + 1.0) / (total - count + 1.0)) if classes > 2 else 0.0
        scores |= {f"extent-{i}[{label}]": float(e) for i, e in enumerate(extent)}
        scores |= {f"offset-{axis}[{label}]": float(o) for axis, o in zip("xyz", offset, strict=True)}
        scores |= {f"{name}[{label}]": value for name, value in _pieces(mask, where, count).items()}
    return scores


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


@dataclass(frozen=True)
class CaseFeatures:
    """Scores of one case.

    Parameters
    ----------
    scores
        By name; what is said of one structure ends in ``[label]``.
    shape
        Those of them that the mask alone tells.
    doubt
        ``(H, W, D)`` in 0 to 1 on the grid of the case.
    image
        The judged region of the image ``(C, h, w, d)``.
    probabilities
        The same region of the probabilities ``(K, h, w, d)``.
    """

    scores: Mapping[str, float]
    shape: Mapping[str, float]
    doubt: NDArray[np.float32]
    image: Tensor
    probabilities: Tensor


def case_features(
    image: Tensor, probabilities: Tensor, spacing_mm: Sequence[float], critic: ErrorNet | None
) -> CaseFeatures:
    """Score one case.

    Parameters
    ----------
    image
        ``(C, H, W, D)`` as the network saw it.
    probabilities
        ``(K, H, W, D)`` on that grid, background first.
    spacing_mm
        Voxel size.
    critic
        The finished discriminator, if there is one; without it doubt is what the softmax leaves open.
    """
    labels = found_labels(probabilities)
    box = region_of(labels)
    labels, inside = labels[box], probabilities[(slice(None), *box)]
    seen = image[(slice(None), *box)].float()
    shape = shape_features(labels.numpy().astype(np.uint8), spacing_mm, len(inside))
    scores = confidence_features(inside, labels) | shape
    if critic is None:
        local = 1.0 - inside.amax(0)
    else:
        errors = critic.judge(seen, inside)
        local = errors.doubt
        scores |= _critic_scores(errors.dice, errors.invented, errors.missed, labels)
    doubt = np.zeros(probabilities.shape[1:], dtype=np.float32)
    doubt[box] = local.clamp(0, 1).numpy()
    return CaseFeatures(scores, shape, doubt, seen, inside)


def _critic_scores(dice: Tensor, invented: Tensor, missed: Tensor, labels: Tensor) -> dict[str, float]:
    scores: dict[str, float] = {}
    for label in range(1, len(dice) + 1):
        size = max(float((labels == label).sum()), 1.0)
        scores[f"critic-dice[{label}]"] = float(dice[label - 1])
        scores[f"critic-invented[{label}]"] = min(float(invented[label - 1]) / size, 1.0)
        scores[f"critic-missed[{label}]"] = min(float(missed[label - 1]) / size, 5.0)
    return scores


def agreement_scores(first: Tensor, second: Tensor) -> dict[str, float]:
    """How well two probabilities ``(K, h, w, d)`` of one box agree, per structure.

    ``agreement[c]`` is Dice of both masks, ``soft-agreement[c]`` of both probabilities, ``growth[c]`` the log ratio of
    the second volume to the first.
    """
    scores: dict[str, float] = {}
    one, two = found_labels(first), found_labels(second)
    for label in range(1, len(first)):
        a, b, p, q = one == label, two == label, first[label], second[label]
        n, m = float(a.sum()), float(b.sum())
        scores[f"agreement[{label}]"] = 2 * float((a & b).sum()) / (n + m) if n + m else 0.0
        scores[f"soft-agreement[{label}]"] = 2 * float((p * q).sum()) / max(float((p * p).sum() + (q * q).sum()), 1e-6)
        scores[f"growth[{label}]"] = math.log((m + 10.0) / (n + 10.0))
    return scores


def used_for(label: int, names: Sequence[str]) -> tuple[str, ...]:
    """Which of the scores tell about one structure: its own, and those of the whole case."""
    return tuple(name for name in names if not name.endswith("]") or name.endswith(f"[{label}]"))
