from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import BundleError, UsageError
from medseg.results.verdict import StructureQuality, Thresholds
from medseg.trust.calibration import (
    AboutCases,
    Calibration,
    FitOptions,
    KindBound,
    fit_calibration,
    predicted_kind,
)
from medseg.trust.regression import conformal_quantile, features_for

SHA = "ab" * 32


def simulated(n: int, seed: int) -> tuple[dict[str, Any], Any]:
    """A feature that tells the Dice, less exactly where the Dice is low, and one that tells nothing."""
    generator = np.random.default_rng(seed)
    quality = generator.beta(5, 1.5, n)
    dice = np.clip(quality + generator.normal(0, 1, n) * 0.25 * (1.05 - quality), 0, 1)
    return {"agreement": quality, "noise": generator.random(n)}, dice


@cache
def fitted(n: int = 150, seed: int = 0, **options: Any) -> Calibration:
    features, dice = simulated(n, seed)
    return fit_calibration(features, {1: dice}, {1: "organ"}, [f"p{i}" for i in range(n)], SHA, FitOptions(**options))


def estimates(calibration: Calibration, features: dict[str, Any]) -> list[StructureQuality]:
    rows = zip(*features.values(), strict=True)
    return [calibration.estimate(dict(zip(features, row, strict=True)))[0] for row in rows]


def test_the_prediction_follows_the_dice() -> None:
    features, dice = simulated(80, 1)
    predicted = np.array([estimate.predicted_dice for estimate in estimates(fitted(), features)])
    assert np.corrcoef(predicted, dice)[0, 1] > 0.8
    assert np.abs(predicted - dice).mean() < 0.6 * np.abs(dice - dice.mean()).mean()


def test_the_bound_holds_as_often_as_it_says() -> None:
    covered = []
    for seed in range(2):
        features, dice = simulated(150, 100 + seed)
        bounds = [estimate.lower_bound for estimate in estimates(fitted(seed=seed), features)]
        covered.append(np.mean(dice >= np.array(bounds)))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.06)


def test_the_bound_is_closer_where_the_errors_are_small() -> None:
    calibration = fitted(300)
    [good], [poor] = (estimates(calibration, {"agreement": [q], "noise": [0.5]}) for q in (0.97, 0.5))
    assert good.predicted_dice - good.lower_bound < 0.7 * (poor.predicted_dice - poor.lower_bound)


def test_features_that_tell_nothing_give_a_low_bound_that_still_holds() -> None:
    features, dice = simulated(200, 3)
    useless = {"noise": features["noise"]}
    calibration = fit_calibration(useless, {1: dice}, {1: "organ"}, [str(i) for i in range(200)], SHA)
    fresh, truth = simulated(200, 4)
    bounds = np.array([e.lower_bound for e in estimates(calibration, {"noise": fresh["noise"]})])
    assert (truth >= bounds).mean() > 0.84
    assert bounds.mean() < truth.mean() - 0.15


def test_too_few_patients_promise_nothing() -> None:
    calibration = fitted(8, folds=4)
    assert calibration.structures[0].quantile is None
    assert estimates(calibration, simulated(3, 0)[0])[0].lower_bound == 0.0


@pytest.mark.parametrize(("n", "coverage", "rank"), [(9, 0.9, 9), (19, 0.9, 18), (99, 0.95, 95), (8, 0.9, None)])
def test_the_quantile_is_the_conformal_one(n: int, coverage: float, rank: int | None) -> None:
    expected = None if rank is None else float(rank)
    assert conformal_quantile(np.arange(1.0, n + 1)[::-1], coverage) == expected


def test_cases_of_one_patient_count_as_one() -> None:
    features, dice = simulated(40, 0)
    patients = [f"p{i // 8}" for i in range(40)]
    [structure] = fit_calibration(features, {1: dice}, {1: "organ"}, patients, SHA).structures
    assert (structure.n_cases, structure.n_patients, structure.quantile) == (40, 5, None)


def test_it_comes_back_from_json_the_same(tmp_path: Path) -> None:
    calibration = fitted(60)
    calibration.write(tmp_path / "calibration.json")
    again = Calibration.read(tmp_path / "calibration.json", [SHA])
    assert again == calibration
    assert json.loads((tmp_path / "calibration.json").read_text())["weights_sha256"] == SHA


def test_other_weights_are_refused(tmp_path: Path) -> None:
    fitted(60).write(tmp_path / "calibration.json")
    with pytest.raises(BundleError, match="medseg trust fit"):
        Calibration.read(tmp_path / "calibration.json", ["cd" * 32])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "medseg-trust-calibration-1"}'])
def test_what_is_no_calibration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(BundleError, match="not a trust calibration"):
        Calibration.read(tmp_path / "calibration.json")


def test_a_tree_that_asks_for_another_feature_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    fitted(60).write(path)
    content = json.loads(path.read_text())
    content["structures"][0]["regressor"]["trees"][0]["feature"][0] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="asks for a feature"):
        Calibration.read(path)


def test_a_feature_that_is_not_finite_is_a_failure() -> None:
    assert fitted(60).estimate({"agreement": float("nan"), "noise": 0.5}) == (StructureQuality(1, "organ", 0.0, 0.0),)


def test_features_of_other_structures_are_left_out() -> None:
    assert features_for(1, ("a[1]", "a[2]", "whole", "a[11]")) == ("a[1]", "whole")


def test_a_missing_feature_is_an_error() -> None:
    with pytest.raises(UsageError, match="noise"):
        fitted(60).estimate({"agreement": 0.9})


def test_absent_structures_are_left_out_of_the_fit() -> None:
    features, dice = simulated(60, 0)
    with_gaps = [None if i < 20 else float(value) for i, value in enumerate(dice)]
    [structure] = fit_calibration(features, {1: with_gaps}, {1: "organ"}, [str(i) for i in range(60)], SHA).structures
    assert structure.n_cases == 40


@pytest.mark.parametrize("options", [{"coverage": 1.0}, {"folds": 1}])
def test_impossible_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give"):
        FitOptions(**options)


def test_fewer_patients_than_folds_are_an_error() -> None:
    with pytest.raises(UsageError, match="organ has 3 patients"):
        fitted(3)


def test_features_of_another_length_are_an_error() -> None:
    with pytest.raises(UsageError, match="length"):
        fit_calibration({"a": [0.1, 0.2]}, {1: [0.5]}, {1: "organ"}, ["p", "q"], SHA)


class Echo:
    """A regressor whose prediction is the first feature, so that every error can be worked out by hand."""

    trees = ()

    def predict(self, rows: Any) -> Any:
        return rows[:, 0]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.trust.calibration.fit_boosted_trees", lambda *_: Echo())


def of_kinds(errors: dict[str, Any], patients: dict[str, Any] | None = None, **options: Any) -> Calibration:
    """A calibration on results that all seem to have a Dice of 0.9, with these overestimates by kind of image."""
    kinds = [kind for kind, column in errors.items() for _ in column]
    dice = 0.9 - np.concatenate([*errors.values()])
    names = {kind: [f"p{i}" for i in range(len(column))] for kind, column in errors.items()} | (patients or {})
    whose = [name for kind in errors for name in names[kind]]
    guess = {"guess": [0.9] * len(dice)}
    return fit_calibration(
        guess, {1: dice.tolist()}, {1: "organ"}, whose, SHA, FitOptions(**options), about=AboutCases(kinds)
    )


def width(calibration: Calibration, kind: str | None) -> float:
    [found] = calibration.estimate({"guess": 0.9}, kind)
    return round(found.predicted_dice - found.lower_bound, 6)


STEPS = np.arange(1, 21) / 100  # overestimates of 20 patients: the conformal quantile is the 19th


@pytest.mark.usefixtures("echo")
def test_a_kind_that_is_worse_has_a_lower_bound_and_a_better_one_no_higher() -> None:
    calibration = of_kinds({"usual": STEPS / 10, "motion": STEPS})
    assert width(calibration, "motion") == 0.19
    pooled = width(calibration, None)  # 21 · 0.9 = 18.9 of 20 patients' results, half of them of each kind
    assert pooled == 0.18
    assert width(calibration, "usual") == width(calibration, "never seen") == pooled
    assert calibration.wider_for == ("motion",)
    assert [(kind.name, kind.n_patients) for kind in calibration.structures[0].kinds] == [("motion", 20), ("usual", 20)]


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(("n", "own"), [(8, False), (9, True)])
def test_a_kind_of_fewer_than_nine_patients_has_the_bound_of_all(n: int, own: bool) -> None:
    calibration = of_kinds({"usual": STEPS / 10, "motion": STEPS[:n]})
    assert [kind.name for kind in calibration.structures[0].kinds] == (["motion", "usual"] if own else ["usual"])
    assert width(calibration, "motion") == (0.09 if own else width(calibration, None))


@pytest.mark.usefixtures("echo")
def test_many_results_of_one_patient_make_no_kind() -> None:
    calibration = of_kinds({"usual": STEPS, "motion": STEPS}, {"motion": [f"p{i // 4}" for i in range(20)]})
    assert [kind.name for kind in calibration.structures[0].kinds] == ["usual"]


@pytest.mark.usefixtures("echo")
def test_a_higher_coverage_needs_more_patients_of_a_kind() -> None:
    calibration = of_kinds({"usual": np.tile(STEPS, 3), "motion": STEPS[:15]}, coverage=0.95)
    assert [kind.name for kind in calibration.structures[0].kinds] == ["usual"]


@pytest.mark.usefixtures("echo")
def test_the_bound_of_each_kind_holds_as_often_as_it_says() -> None:
    spread, rng = {"usual": 0.02, "motion": 0.15, "noise": 0.05}, np.random.default_rng(0)

    def drawn(n: int) -> tuple[list[str], list[str], Any]:
        """Patients whose images are of several kinds, some of them twice, with errors that go together."""
        kinds, whose, errors = [], [], []
        for i in range(n):
            shared = rng.normal()
            for kind in rng.choice([*spread], 5, p=[0.6, 0.2, 0.2]):
                kinds.append(str(kind))
                whose.append(f"p{i}")
                errors.append(spread[str(kind)] * (0.7 * shared + 0.7 * rng.normal()))
        return kinds, whose, 0.7 - np.array(errors)

    reached: dict[str, list[float]] = {kind: [] for kind in spread}
    pooled: list[float] = []
    for _ in range(60):
        kinds, whose, dice = drawn(40)
        guess = {"guess": [0.7] * len(dice)}
        fit = fit_calibration(guess, {1: dice}, {1: "o"}, whose, SHA, about=AboutCases(kinds))
        bound = {kind: fit.estimate({"guess": 0.7}, kind)[0].lower_bound for kind in spread}
        kinds, whose, dice = drawn(60)
        for kind in spread:
            reached[kind].append(float(np.mean(dice[np.array(kinds) == kind] >= bound[kind])))
        pooled.append(float(np.mean(dice[np.array(kinds) == "motion"] >= fit.estimate({"guess": 0.7})[0].lower_bound)))
    assert all(np.mean(column) >= 0.885 for column in reached.values())
    assert np.mean(reached["motion"]) < 0.95  # not wider than it must be
    assert np.mean(pooled) < 0.8  # what the bound of all kinds promises in vain


@pytest.mark.usefixtures("echo")
def test_the_threshold_is_chosen_for_the_precision_and_not_made_up() -> None:
    errors = {"usual": np.tile(STEPS / 10, 10)}
    calibration = of_kinds(errors)  # every bound is 0.882, every Dice at least 0.88
    assert calibration.thresholds.accept == 0.5
    assert calibration.accepted is not None
    [row] = calibration.accepted.at(0.5).own
    assert (row.good.share, row.good.n_patients, row.accepted.share) == (1.0, 200, 1.0)
    assert of_kinds(errors, good_dice=0.8845).thresholds.accept is None  # three in four are
    assert of_kinds(errors, good_dice=0.8845, precision=0.6).thresholds.accept == 0.5
    given = of_kinds(errors, thresholds=Thresholds(0.62, 0.3))
    assert given.thresholds == Thresholds(0.62, 0.3)
    assert given.accepted is not None
    assert given.accepted.precision is None
    assert len(given.accepted.at(0.62).own) == 1
    assert calibration.thresholds.decide(calibration.estimate({"guess": 0.9})) == "accept"
    assert of_kinds(errors, precision=0.999).thresholds.decide(calibration.estimate({"guess": 0.9})) == "review"


@pytest.mark.usefixtures("echo")
def test_what_is_flagged_or_lacks_a_structure_counts_as_not_accepted() -> None:
    n = 40
    dice: dict[int, list[float | None]] = {1: [0.9] * n, 2: [None] * 10 + [0.9] * 30}
    about = AboutCases(own=[True] * 30 + [False] * 10, flagged=[False] * 20 + [True] * 5 + [False] * 15)
    found = fit_calibration(
        {"guess": [0.9] * n}, dice, {1: "a", 2: "b"}, [str(i) for i in range(n)], SHA, about=about
    ).accepted
    assert found is not None
    assert [row.accepted.share for row in found.at(0.8).own] == [0.5]
    assert [row.accepted.share for row in found.at(0.8).worse] == [1.0]


def test_kinds_and_table_come_back_from_json_the_same(tmp_path: Path) -> None:
    plain = fitted(60)
    kinds = (KindBound("motion", 2.5, 30), KindBound("usual", 0.5, 60))
    calibration = replace(plain, structures=tuple(replace(one, kinds=kinds) for one in plain.structures))
    assert calibration.wider_for == ("motion",)
    calibration.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json", [SHA]) == calibration


def test_an_older_file_has_the_bound_of_all_kinds(tmp_path: Path) -> None:
    path, new = tmp_path / "calibration.json", fitted(60)
    new.write(path)
    content = json.loads(path.read_text())
    del content["accepted"], content["structures"][0]["kinds"]
    content["thresholds"]["accept"] = 0.8
    path.write_text(json.dumps(content))
    old, features = Calibration.read(path), {"agreement": 0.9, "noise": 0.5}
    assert (old.accepted, old.wider_for, old.thresholds) == (None, (), Thresholds(0.8, 0.5))
    assert old.estimate(features, "motion") == new.estimate(features)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([{"name": "motion", "quantile": -1.0, "n_patients": 9}], "a number from 0"),
        ([{"name": "motion", "n_patients": 9}], "has no quantile"),
        ([{"name": "motion", "quantile": 2.0, "n_patients": 9, "more": 1}] * 2, "two bounds"),
        ({"motion": 2.0}, "expected a list"),
    ],
)
def test_kinds_that_make_no_sense_are_refused(kinds: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    fitted(60).write(path)
    content = json.loads(path.read_text())
    content["structures"][0]["kinds"] = kinds
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=told):
        Calibration.read(path)


def test_the_kind_is_the_most_probable_one() -> None:
    assert predicted_kind({"kind-motion": 0.3, "entropy": 9.0, "kind-bias-field": 0.6}) == "bias-field"
    assert predicted_kind({"entropy": 9.0}) is None
