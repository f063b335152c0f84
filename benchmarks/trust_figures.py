"""Figures from scored cases: error, ranks, coverage, risk and coverage, what each part adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.trust_scores import Row
from medseg.trust.calibration import FitOptions, features_for, fit_calibration
from medseg.trust.fit import TrustOptions
from medseg.trust.gradient_boosting import fit_boosted_trees

Floats = NDArray[np.float64]
Chosen = Callable[[str], bool]

SOFT = ("soft-dice", "mean-entropy", "mean-margin", "unsure", "leaning", "entropy")
SHAPE = ("log-volume", "other", "extent", "offset", "pieces", "largest", "surface")


def is_critic(name: str) -> bool:
    """Scores of the finished discriminator."""
    return name.startswith("critic-")


def is_soft(name: str) -> bool:
    """Scores of the softmax."""
    return name.partition("[")[0] in SOFT


def is_shape(name: str) -> bool:
    """Scores of the mask."""
    return name.startswith(SHAPE) or name == "shape-distance"


def is_novelty(name: str) -> bool:
    """Distances from the training cases."""
    return name in {"encoder-distance", "image-distance"}


def is_agreement(name: str) -> bool:
    """Scores of the second look."""
    return name.startswith(("agreement", "soft-agreement", "growth"))


def is_adversary(name: str) -> bool:
    """Logits of the discriminator before it was finished."""
    return name.startswith("adversary-")


def is_shipped(name: str) -> bool:
    """What :class:`medseg.trust.trust_model.TrustModel` uses."""
    return is_critic(name) or is_soft(name) or is_shape(name) or is_novelty(name) or is_agreement(name)


PARTS: Mapping[str, Chosen] = {
    "all": is_shipped,
    "without critic": lambda n: is_shipped(n) and not is_critic(n),
    "without second look": lambda n: is_shipped(n) and not is_agreement(n),
    "without softmax": lambda n: is_shipped(n) and not is_soft(n),
    "without distances": lambda n: is_shipped(n) and not n.endswith("-distance"),
    "without shape": lambda n: is_shipped(n) and not is_shape(n),
    "critic alone": is_critic,
    "second look alone": is_agreement,
    "softmax alone": is_soft,
    "entropy alone": lambda n: n.startswith("mean-entropy"),
    "adversarial discriminator, not finished": is_adversary,
}


def importance(rows: Sequence[Row]) -> list[float]:
    """How much each result counts, as in :func:`medseg.trust.fit.fit_trust`."""
    return [TrustOptions().own_weight if row["kind"] == "own" else 1.0 for row in rows]


def table(rows: Sequence[Row], label: str) -> tuple[Floats, NDArray[np.bool_], list[str], NDArray[Any]]:
    """Dice, whether it is the network's own result, patients and parts, of the cases that have the structure."""
    dice = np.array([np.nan if row["dice"][label] is None else row["dice"][label] for row in rows])
    own = np.array([row["kind"] == "own" for row in rows])
    return dice, own, [row["patient"] for row in rows], np.array([row["part"] for row in rows])


def predicted(rows: Sequence[Row], chosen: Chosen, label: str, *, unknown_kind: bool = False) -> Floats:
    """Cross-fitted predictions of one structure's Dice; on request by halves, from other kinds of worsening alone."""
    names = [n for n in features_for(int(label), list(rows[0]["scores"])) if chosen(n)]
    inputs = np.array([[row["scores"][name] for name in names] for row in rows])
    dice, own, patients, part = table(rows, label)
    kind, counts = np.array([row["kind"] for row in rows]), np.array(importance(rows))
    known, found = np.isfinite(dice), np.full(len(rows), np.nan)
    part = part % 2 if unknown_kind else part
    _, index = np.unique(patients, return_inverse=True)
    for left_out in sorted(set(kind[~own])) if unknown_kind else [""]:
        for number in np.unique(part):
            fit = known & (part != number) & (kind != left_out)
            test = (part == number) & ((kind == left_out) | (not left_out))
            share = counts[fit] / np.bincount(index[fit], counts[fit], index.max() + 1)[index[fit]]
            found[test] = np.clip(fit_boosted_trees(inputs[fit], dice[fit], share).predict(inputs[test]), 0, 1)
    return found


def bounded(rows: Sequence[Row], chosen: Chosen, labels: Mapping[int, str]) -> dict[str, tuple[Floats, Floats]]:
    """Cross-fitted predictions and lower bounds by structure: the whole calibration as it ships, nested."""
    names = [name for name in rows[0]["scores"] if chosen(name)]
    part = np.array([row["part"] for row in rows])
    found = {str(label): (np.full(len(rows), np.nan), np.full(len(rows), np.nan)) for label in labels}
    for number in np.unique(part):
        fit = [row for row in rows if row["part"] != number]
        calibration = fit_calibration(
            {name: [row["scores"][name] for row in fit] for name in names},
            {label: [row["dice"][str(label)] for row in fit] for label in labels},
            labels,
            [row["patient"] for row in fit],
            "cross-fitted",
            FitOptions(),
            importance(fit),
        )
        for i in map(int, np.flatnonzero(part == number)):
            for one in calibration.estimate(rows[i]["scores"]):
                found[str(one.label)][0][i], found[str(one.label)][1][i] = one.predicted_dice, one.lower_bound
    return found


def quality(dice: Floats, score: Floats) -> dict[str, float | None]:
    """How well a score tells Dice; where all are good or all are poor, AUROC does not exist."""
    poor = dice < 0.8
    both = 0 < poor.sum() < len(poor)
    return {
        "n": len(dice),
        "mae": float(np.abs(dice - score).mean()),
        "spearman": float(spearmanr(dice, score)[0]),
        "auroc": float(roc_auc_score(poor, -score)) if both else None,
        "aurc": aurc(dice, score),
        "aurc, best possible": aurc(dice, dice),
        "aurc, by chance": float((1 - dice).mean()),
    }


def aurc(dice: Floats, score: Floats) -> float:
    """Area under the risk–coverage curve: mean of 1 - Dice over the best-looking share of cases, over all shares."""
    order = np.argsort(-score, kind="stable")
    return float((np.cumsum(1 - dice[order]) / np.arange(1, len(dice) + 1)).mean())


def coverage(dice: Floats, bound: Floats, patients: Sequence[str], resamples: int = 2000) -> dict[str, float]:
    """Share of cases above the bound, with a 95 % interval over resampled patients."""
    known, index = np.unique(np.asarray(patients), return_inverse=True)
    hits = np.bincount(index, (dice >= bound).astype(float), len(known))
    count = np.bincount(index, minlength=len(known)).astype(float)
    drawn = np.random.default_rng(0).integers(0, len(known), (resamples, len(known)))
    share = hits[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(share, [0.025, 0.975])
    return {"share": float(hits.sum() / count.sum()), "low": float(low), "high": float(high)}


def ablation(rows: Sequence[Row], labels: Sequence[str], parts: Sequence[str] = tuple(PARTS)) -> dict[str, Any]:
    """Quality of every selection of scores on own and on worsened results, both structures together."""
    found = {name: part_quality(rows, labels, PARTS[name]) for name in parts}
    return found | {"all, of kinds not seen before": part_quality(rows, labels, is_shipped, unknown_kind=True)}


def part_quality(
    rows: Sequence[Row], labels: Sequence[str], chosen: Chosen, *, unknown_kind: bool = False
) -> dict[str, Any]:
    """Quality of one selection of scores on own and on worsened results, both structures together."""
    dice, score, own = [], [], []
    for label in labels:
        if not any(chosen(n) for n in features_for(int(label), list(rows[0]["scores"]))):
            continue
        truth, mine, _, _ = table(rows, label)
        tried = predicted(rows, chosen, label, unknown_kind=unknown_kind)
        known = np.isfinite(truth) & np.isfinite(tried)
        dice.append(truth[known])
        score.append(tried[known])
        own.append(mine[known])
    d, s, o = np.concatenate(dice), np.concatenate(score), np.concatenate(own)
    return {name: quality(d[which], s[which]) for name, which in (("own", o), ("worse", ~o)) if which.any()}
