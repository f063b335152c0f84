"""Figures from scored cases: error, ranks, coverage, risk and coverage, what is accepted, what each part adds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.trust_scores import Row
from medseg.results.accept_table import ACCEPT_FROM, GOOD_DICE, NEVER, AcceptTable, PatientShare
from medseg.trust.calibration import AboutCases, FitOptions, fit_calibration, predicted_kind
from medseg.trust.fit import FALSE_FLAGS, TrustOptions
from medseg.trust.gradient_boosting import fit_boosted_trees
from medseg.trust.out_of_distribution import limits_of
from medseg.trust.regression import features_for, shares

Floats = NDArray[np.float64]
Chosen = Callable[[str], bool]

SOFT = ("soft-dice", "mean-entropy", "mean-margin", "unsure", "leaning", "entropy")
SHAPE = ("log-volume", "other", "extent", "offset", "pieces", "largest", "surface", "at-border", "faces")
DISTANCES = ("encoder", "image", "shape")
RESAMPLES = 500


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
    return any(part(name) for part in (is_critic, is_soft, is_shape, is_novelty, is_agreement, is_kind))


def is_kind(name: str) -> bool:
    """Probabilities of the fault classifier."""
    return name.startswith("kind-")


PARTS: Mapping[str, Chosen] = {
    "all": is_shipped,
    "without critic": lambda n: is_shipped(n) and not is_critic(n),
    "without second look": lambda n: is_shipped(n) and not is_agreement(n),
    "without softmax": lambda n: is_shipped(n) and not is_soft(n),
    "without distances": lambda n: is_shipped(n) and not n.endswith("-distance"),
    "without shape": lambda n: is_shipped(n) and not is_shape(n),
    "without kinds": lambda n: is_shipped(n) and not is_kind(n),
    "critic alone": is_critic,
    "second look alone": is_agreement,
    "softmax alone": is_soft,
    "entropy alone": lambda n: n.startswith("mean-entropy"),
    "adversarial discriminator, not finished": is_adversary,
}


def importance(rows: Sequence[Row]) -> list[float]:
    """How much each result counts, as in :func:`medseg.trust.fit.fit_trust`."""
    return [TrustOptions().own_weight if row["kind"] == "own" else 1.0 for row in rows]


def kinds_of(rows: Sequence[Row]) -> list[str | None]:
    """The kind of image that the fault classifier takes each result for."""
    return [predicted_kind(row["scores"]) for row in rows]


def limits(rows: Sequence[Row]) -> dict[str, float]:
    """Distances above which a case is flagged, as the network's own results among these rows say."""
    own = [row["scores"] for row in rows if row["kind"] == "own"]
    return limits_of({name: [scores[f"{name}-distance"] for scores in own] for name in DISTANCES}, FALSE_FLAGS)


def is_flagged(row: Row, over: Mapping[str, float]) -> bool:
    """Whether a result lacks a structure, or is farther from the training than one of these limits."""
    scores = row["scores"]
    missing = any(value == 0 for name, value in scores.items() if name.startswith("largest["))
    return missing or any(scores[f"{name}-distance"] > limit for name, limit in over.items())


def flagged(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Whether each result is flagged, by limits from the own results of the other parts."""
    part, over = np.array([row["part"] for row in rows]), np.zeros(len(rows), dtype=bool)
    for number in np.unique(part):
        others = limits([row for row in rows if row["part"] != number])
        for i in map(int, np.flatnonzero(part == number)):
            over[i] = is_flagged(rows[i], others)
    return over


def about(rows: Sequence[Row]) -> AboutCases:
    """Kinds of image, own results and flags, as :func:`medseg.trust.fit.fit_trust` knows them."""
    return AboutCases(kinds_of(rows), [row["kind"] == "own" for row in rows], flagged(rows).tolist())


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
    for left_out in sorted(set(kind[~own])) if unknown_kind else [""]:
        for number in np.unique(part):
            fit = known & (part != number) & (kind != left_out)
            test = (part == number) & ((kind == left_out) | (not left_out))
            share, _ = shares(np.array(patients)[fit], counts[fit])
            found[test] = np.clip(fit_boosted_trees(inputs[fit], dice[fit], share).predict(inputs[test]), 0, 1)
    return found


def bounded(
    rows: Sequence[Row], chosen: Chosen, labels: Mapping[int, str]
) -> tuple[dict[str, tuple[Floats, Floats]], NDArray[np.bool_]]:
    """Cross-fitted predictions and bounds by structure, and what is accepted: the calibration as it ships, nested.

    The threshold that accepts was chosen on the other parts, like everything else.
    """
    names = [name for name in rows[0]["scores"] if chosen(name)]
    part, strange = np.array([row["part"] for row in rows]), flagged(rows)
    found = {str(label): (np.full(len(rows), np.nan), np.full(len(rows), np.nan)) for label in labels}
    accepted = np.zeros(len(rows), dtype=bool)
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
            about(fit),
        )
        for i in map(int, np.flatnonzero(part == number)):
            told = calibration.estimate(rows[i]["scores"], predicted_kind(rows[i]["scores"]))
            for one in told:
                found[str(one.label)][0][i], found[str(one.label)][1][i] = one.predicted_dice, one.lower_bound
            accepted[i] = calibration.thresholds.decide(told) == "accept" and not strange[i]
    return found, accepted


def accept_tables(rows: Sequence[Row], bounds: Sequence[Floats], accepted: NDArray[np.bool_]) -> dict[str, Any]:
    """What thresholds accept, from 0.0 (the constant guess: all that is not flagged), and what the chosen ones accept.

    ``bounds`` are those of :func:`bounded`. Of the chosen ones also how much better their precision is than the
    constant guess's, in pairs: an interval over resampled patients.
    """
    dice = np.array([[np.nan if value is None else value for value in row["dice"].values()] for row in rows])
    bound, good = np.min(bounds, axis=0), np.asarray(np.nanmin(dice, axis=1, initial=1.0) >= GOOD_DICE)
    bound[flagged(rows) | np.isnan(dice).any(axis=1)] = NEVER
    own = np.array([row["kind"] == "own" for row in rows], dtype=bool)
    patients = np.array([row["patient"] for row in rows])
    made = AcceptTable.of(bound, good, own, patients.tolist(), thresholds=(0.0, *ACCEPT_FROM)).to_json()
    for name, group in (("own", own), ("worse", ~own)):
        yes, every = group & accepted, group & (bound > NEVER)

        def gain(which: NDArray[np.intp], yes: NDArray[np.bool_] = yes, every: NDArray[np.bool_] = every) -> float:
            return float(good[which][yes[which]].mean() - good[which][every[which]].mean())

        made[f"{name}, chosen"] = {
            "accepted": asdict(PatientShare.of(accepted[group], patients[group])),
            "good": asdict(PatientShare.of(good[yes], patients[yes])),
            "more than of all": resampled(gain, patients) if yes.any() else None,
        }
    return made


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
        "augrc": augrc(dice, score),
        "augrc, best possible": augrc(dice, dice),
        "augrc, by chance": float((1 - dice).mean() / 2),
    }


def _losses(dice: Floats, score: Floats) -> Floats:
    """1 - Dice, the best-looking first; equal scores have the mean loss among them, as in any order of them."""
    _, index = np.unique(-score, return_inverse=True)
    return np.asarray(np.repeat(np.bincount(index, 1 - dice) / np.bincount(index), np.bincount(index)))


def aurc(dice: Floats, score: Floats) -> float:
    """Area under the risk–coverage curve: mean of 1 - Dice over the best-looking share of cases, over all shares."""
    return float((np.cumsum(_losses(dice, score)) / np.arange(1, len(dice) + 1)).mean())


def augrc(dice: Floats, score: Floats) -> float:
    """Area under the generalised risk–coverage curve (Traub et al., NeurIPS 2024, arXiv 2407.01032).

    As :func:`aurc`, but the losses of the accepted cases are divided by the number of all: what is lost by accepting
    them without a look. So a poor case at the top counts once, not in every mean after it. With losses of 0 and 1 it is
    ``(1 - AUROC) · acc · (1 - acc) + (1 - acc)² / 2``.
    """
    loss = _losses(dice, score) / len(dice)
    return float((np.cumsum(loss) - loss / 2).mean())


def resampled(figure: Callable[[NDArray[np.intp]], float], patients: Sequence[str] | NDArray[Any]) -> dict[str, float]:
    """A figure of cases, by their numbers, with a 95 % interval over resampled patients."""
    known, index = np.unique(np.asarray(patients), return_inverse=True)
    whose = [np.flatnonzero(index == number) for number in range(len(known))]
    drawn = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    with np.errstate(invalid="ignore"), warnings.catch_warnings():  # of no accepted case there is no mean
        warnings.simplefilter("ignore", RuntimeWarning)
        found = [figure(np.concatenate([whose[number] for number in row])) for row in drawn]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return {"value": figure(np.arange(len(index))), "low": float(low), "high": float(high)}


def paired(dice: Floats, score: Floats, guess: float, patients: Sequence[str] | NDArray[Any]) -> dict[str, Any]:
    """By how much error, AURC and AUGRC are lower than those of a constant guess, on the same cases."""
    constant = np.full(len(dice), guess)
    measures: dict[str, Callable[[Floats, Floats], float]] = {
        "mae": lambda true, told: float(np.abs(true - told).mean()),
        "aurc": aurc,
        "augrc": augrc,
    }
    return {
        name: resampled(lambda i, of=of: of(dice[i], constant[i]) - of(dice[i], score[i]), patients)  # type: ignore[misc]
        for name, of in measures.items()
    }


def coverage(dice: Floats, bound: Floats, patients: Sequence[str], resamples: int = 2000) -> dict[str, float]:
    """Share of cases above the bound, with a 95 % interval over resampled patients."""
    known, index = np.unique(np.asarray(patients), return_inverse=True)
    hits = np.bincount(index, (dice >= bound).astype(float), len(known))
    count = np.bincount(index, minlength=len(known)).astype(float)
    drawn = np.random.default_rng(0).integers(0, len(known), (resamples, len(known)))
    share = hits[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(share, [0.025, 0.975])
    return {"share": float(hits.sum() / count.sum()), "low": float(low), "high": float(high), "patients": len(known)}


def covered(dice: Floats, bound: Floats, patients: NDArray[Any], groups: NDArray[Any]) -> dict[str, Any]:
    """Coverage, and how far the bound lies below 1, for each group of cases."""
    found = {}
    for name in sorted(set(groups.tolist()), key=str):
        of = groups == name
        found[str(name)] = coverage(dice[of], bound[of], patients[of].tolist()) | {"bound": float(bound[of].mean())}
    return found


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
