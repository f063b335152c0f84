from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import BundleError, UsageError
from medseg.results.verdict import StructureQuality
from medseg.trust.calibration import Calibration, FitOptions, conformal_quantile, features_for, fit_calibration

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
