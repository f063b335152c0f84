"""What the network's own probabilities say about its result."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["softness_scores"]

_NOTHING = 1e-6


def softness_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
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
