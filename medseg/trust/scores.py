"""All scores of one case, without its ground truth: the same when a calibration is fitted and when it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.trust.critic import Critic
from medseg.trust.region import found_labels, region_of
from medseg.trust.shape import shape_scores
from medseg.trust.softness import softness_scores

__all__ = ["Scored", "agreement_scores", "score_case", "used_for"]


@dataclass(frozen=True)
class Scored:
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


def score_case(image: Tensor, probabilities: Tensor, spacing_mm: Sequence[float], critic: Critic | None) -> Scored:
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
    shape = shape_scores(labels.numpy().astype(np.uint8), spacing_mm, len(inside))
    scores = softness_scores(inside, labels) | shape
    if critic is None:
        local = 1.0 - inside.amax(0)
    else:
        errors = critic.judge(seen, inside)
        local = errors.doubt
        scores |= _critic_scores(errors.dice, errors.invented, errors.missed, labels)
    doubt = np.zeros(probabilities.shape[1:], dtype=np.float32)
    doubt[box] = local.clamp(0, 1).numpy()
    return Scored(scores, shape, doubt, seen, inside)


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
