"""The benchmark's figures of trust, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import three_judges
from benchmarks import trust_figures as figures


def test_areas_under_the_risk_curves_by_hand() -> None:
    dice, score = np.array([0.9, 0.5, 0.8]), np.array([0.3, 0.2, 0.1])  # losses 0.1, 0.5, 0.2 in this order
    assert figures.aurc(dice, score) == pytest.approx((0.1 + 0.6 / 2 + 0.8 / 3) / 3)
    assert figures.augrc(dice, score) == pytest.approx((0.05 + (0.1 + 0.6) / 2 + (0.6 + 0.8) / 2) / 9)


def test_with_failures_alone_it_is_what_the_auroc_says() -> None:
    rng = np.random.default_rng(0)
    dice, score = (rng.random(60) < 0.7).astype(float), rng.integers(0, 9, 60) / 9.0  # with ties
    right = dice.mean()
    expected = (1 - roc_auc_score(1 - dice, -score)) * right * (1 - right) + (1 - right) ** 2 / 2
    assert figures.augrc(dice, score) == pytest.approx(expected)


def test_a_constant_guess_orders_as_chance_does() -> None:
    dice = np.random.default_rng(0).random(50)
    found = figures.quality(dice, dice)
    assert figures.aurc(dice, np.full(50, 0.4)) == pytest.approx(found["aurc, by chance"])
    assert figures.augrc(dice, np.full(50, 0.4)) == pytest.approx(found["augrc, by chance"])
    assert found["augrc"] == found["augrc, best possible"]
    assert figures.augrc(dice, -dice) > figures.augrc(dice, np.full(50, 0.4)) > figures.augrc(dice, dice)


def test_it_is_better_than_the_guess_in_pairs_or_not() -> None:
    rng = np.random.default_rng(0)
    dice, patients = rng.random(120), np.repeat([f"p{i}" for i in range(40)], 3)
    better = figures.paired(dice, dice + rng.normal(0, 0.1, 120), 0.5, patients)
    none = figures.paired(dice, rng.random(120), 0.5, patients)
    assert all(one["low"] > 0 for one in better.values())
    assert better["mae"]["value"] == pytest.approx(np.abs(dice - 0.5).mean() - 0.08, abs=0.02)
    assert none["augrc"]["low"] < 0 < none["augrc"]["high"]


class Echo:
    """Predicts the first feature."""

    trees = ()

    def predict(self, rows: Any) -> Any:
        return rows[:, 0]


def test_bounds_of_kinds_and_the_accept_table_are_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.trust.calibration.fit_boosted_trees", lambda *_: Echo())
    rng, rows = np.random.default_rng(0), []
    for patient in range(100):
        for kind, spread in (("own", 0.03), ("motion", 0.2)):
            guess, told = rng.uniform(0.85, 0.95), "usual" if kind == "own" else "motion"
            scores = {"soft-dice[1]": guess, "kind-usual": 0.5, "kind-motion": 0.9 if told == "motion" else 0.1}
            scores |= {f"{name}-distance": float(rng.random()) for name in figures.DISTANCES}
            whose = {"patient": str(patient), "part": patient % 4, "kind": kind, "scores": scores}
            rows.append({**whose, "dice": {"1": float(np.clip(guess - abs(rng.normal(0, spread)), 0, 1))}})
    found, accepted = figures.bounded(rows, figures.is_shipped, {1: "organ"})
    dice, own, patients, _ = figures.table(rows, "1")
    covered = figures.covered(dice, found["1"][1], np.array(patients), np.array(figures.kinds_of(rows), dtype=object))
    assert [*covered] == ["motion", "usual"]
    assert all(one["share"] > 0.85 for one in covered.values())
    assert covered["motion"]["bound"] < covered["usual"]["bound"] - 0.05
    tables = figures.accept_tables(rows, [found["1"][1]], accepted)
    chosen, every = tables["own, chosen"], tables["own"][0]
    assert chosen["good"]["share"] > 0.95
    assert 0.9 < every["accepted"]["share"] == np.mean(~figures.flagged(rows)[own]) < 1.0  # a few are flagged
    assert chosen["more than of all"]["low"] <= chosen["more than of all"]["value"]


def test_a_result_without_a_structure_is_flagged_and_the_rest_by_limits_of_other_parts() -> None:
    rows: list[dict[str, Any]] = []
    for number in range(60):
        scores = {"largest[1]": float(number != 7), **dict.fromkeys((f"{n}-distance" for n in figures.DISTANCES), 1.0)}
        rows.append({"part": number % 2, "kind": "own", "patient": str(number), "dice": {"1": 0.9}, "scores": scores})
    rows[9]["scores"]["image-distance"] = 2.0  # among the odd ones, whose limits the even ones tell
    assert np.flatnonzero(figures.flagged(rows)).tolist() == [7, 9]
    assert figures.about(rows).flagged == figures.flagged(rows).tolist()


def test_the_table_of_judges_speaks_of_one_dice_whatever_a_bundle_accepts_from() -> None:
    share, spread = {"low": 0.1, "high": 0.9}, {"mean": None, "std": None}
    good = {"0.55": {**share, "count": 9, "of": 9}, "0.8": {**share, "count": 3, "of": 9}}
    judge = {"judge": "calibrated", "accepted": {**share, "count": 9, "of": 12}, "good": good}
    judge |= {measure: {"accepted": spread, "others": spread} for measure in ("dice", "hd95_mm")}
    assert "| 9 of 12 (10–90 %) | 3 of 9 (10–90 %) |" in three_judges.row(judge)
