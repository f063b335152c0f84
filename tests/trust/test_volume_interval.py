"""Intervals round a volume: by hand, how often they hold, which width is kept, and files that lie."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medseg.bundle import Bundle
from medseg.errors import BundleError
from medseg.results.verdict import UNLIKE_TRAINING, Interval, StructureQuality, Verdict
from medseg.sharing import verify
from medseg.trust.crop import Crop
from medseg.trust.fit_cases import Overlap
from medseg.trust.gradient_boosting import BoostedTrees, Tree
from medseg.trust.trust_files import VOLUME_INTERVAL_NAME, TrustFiles
from medseg.trust.trust_model import TrustModel
from medseg.trust.volume_interval import StructureInterval, VolumeInterval, fit_volume_interval
from tests.odd_values import crashes
from tests.trust.conftest import result

NAMES = {1: "left"}
BY_HAND = [0.0, 0.1, 0.0, -0.2, 0.0, 0.3, 0.0, -0.4, 0.0]
"""Of nine patients: the usual ratio is 0, also without one fold, so the errors are 0 five times, then 0.1 to 0.4."""


def fitted_on(ratios: Sequence[float | None], patients: list[str] | None = None, **more: float) -> StructureInterval:
    patients = patients or [f"p{i}" for i in range(len(ratios))]
    coverage, weights = more.get("coverage", 0.9), [1.0] * len(ratios)
    return fit_volume_interval({}, {1: ratios}, NAMES, patients, "abc", coverage, weights).structures[0]


@pytest.mark.parametrize(("coverage", "error"), [(0.9, 0.4), (0.8, 0.3), (0.7, 0.2), (0.6, 0.1)])
def test_the_quantile_is_that_of_the_patients_and_one_more(coverage: float, error: float) -> None:
    """Each of nine patients has a tenth of the mass, and the last tenth lies at infinity."""
    one = fitted_on(list(BY_HAND), coverage=coverage)
    assert one.quantile == pytest.approx(error)
    assert not one.features
    assert one.n_patients == 9
    assert one.factors({}, coverage) == pytest.approx((math.exp(-error), math.exp(error), coverage))


def test_too_few_patients_have_no_interval() -> None:
    eight = fitted_on(BY_HAND[:8])
    assert (eight.quantile, eight.factors({}, 0.9)) == (None, None)
    assert "8 patients are too few" in eight.describe()
    assert fitted_on([0.1]).quantile is None
    assert fitted_on([None, None]).n_patients == 0


def test_a_patient_counts_once_however_many_results_it_has() -> None:
    patients = [f"p{i}" for i in range(9)]
    often = fitted_on([*BY_HAND, *[0.3] * 50], [*patients, *["p5"] * 50])
    assert often.quantile == pytest.approx(0.4)
    assert (often.n_cases, often.n_patients) == (59, 9)


def test_what_is_flagged_or_empty_does_not_count_and_what_has_no_reference_is_never_reached() -> None:
    assert Overlap(0, 50, 0).log_ratio is None
    assert Overlap(100, 50, 50).log_ratio == pytest.approx(math.log(0.5))
    nothing = Overlap(1000, 0, 0).log_ratio
    found = fitted_on([*BY_HAND, None, nothing], coverage=0.8)
    assert found.n_patients == 10
    assert found.quantile == pytest.approx(0.4), "nine of eleven parts"
    wide = fitted_on([*BY_HAND[:8], nothing], coverage=0.9)
    assert wide.quantile is not None
    assert wide.factors({}, 0.9) is None, "from nothing to ten times as much says nothing"


def test_an_interval_holds_what_was_found() -> None:
    """Where results are usually too small, the interval goes up from there, not away from it."""
    found = fitted_on([0.5 + 0.1 * value for value in BY_HAND]).factors({}, 0.9)
    assert found is not None
    assert found == pytest.approx((1.0, math.exp(0.54), 0.9))


def simulated(patients: int, seed: int, steep: float) -> tuple[dict[str, list[float]], list[float], list[str]]:
    """Masks that are too small by what a feature says, if it is ``steep``, the more unsurely so; two of a patient."""
    rng = np.random.default_rng(seed)
    feature = rng.uniform(0, 1, 2 * patients)
    ratios = steep * feature + rng.normal(0, 0.05 * (1.0 + steep * feature))
    columns = {"x[1]": feature.tolist(), "noise": rng.uniform(0, 1, 2 * patients).tolist()}
    return columns, ratios.tolist(), [f"p{i // 2}" for i in range(2 * patients)]


def staircase(inputs: Any, target: Any, _: Any) -> BoostedTrees:
    """A regressor in no time: the mean of the target on ten steps of the first feature."""
    step = np.minimum((10 * inputs[:, 0]).astype(int), 9)
    means = [float(target[step == number].mean()) for number in range(10)]
    trees = [
        Tree(
            (0, -1, -1),
            (0.1 * number, 0.0, 0.0),
            (1, -1, -1),
            (2, -1, -1),
            (0.0, 0.0, means[number] - means[number - 1]),
        )
        for number in range(1, 10)
    ]
    return BoostedTrees(means[0], 1.0, tuple(trees))


@pytest.mark.parametrize(("steep", "by_case"), [(1.0, True), (0.0, False)])
def test_intervals_hold_as_often_as_they_say_and_the_narrower_one_is_kept(
    steep: float, by_case: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.trust.volume_interval.fit_boosted_trees", staircase)
    columns, ratios, patients = simulated(100, 0, steep)
    own = fit_volume_interval(columns, {1: ratios}, NAMES, patients, "abc", 0.9, [1.0] * len(ratios)).structures[0]
    assert own.narrower is not None
    assert (bool(own.features), own.narrower < 0.9) == (by_case, by_case)
    features, truth, _ = simulated(500, 1, steep)
    held, width = [], []
    for x, noise, ratio in zip(features["x[1]"], features["noise"], truth, strict=True):
        interval = own.factors({"x[1]": x, "noise": noise}, 0.9)
        assert interval is not None
        assert interval.low <= 1.0 <= interval.high
        held.append(interval.low <= math.exp(ratio) <= interval.high)
        width.append(math.log(interval.high / interval.low))
    inside, place, wide = np.array(held), np.array(features["x[1]"]), np.array(width)
    assert 0.85 <= inside.mean() <= 0.97
    assert inside[place > 0.7].mean() >= 0.8
    assert (wide[place > 0.7].mean() > 2 * wide[place < 0.3].mean()) == by_case
    assert own.describe().startswith("left: " + ("interval of its volume by case" if by_case else "constant interval"))


# --- in a bundle ----------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(fitted: tuple[Bundle, nn.Module], tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(fitted[0].path, tmp_path / "copy" / fitted[0].path.name))


def model_of(bundle: Bundle) -> TrustModel:
    model = TrustModel.open(TrustFiles(bundle), bundle.load_network())
    assert model is not None
    return model


def test_a_fitted_bundle_gives_intervals_and_says_how_often_they_hold(judged: Bundle) -> None:
    files = TrustFiles(judged)
    assert files.volume_interval is not None
    assert files.volume_interval == VolumeInterval.read(judged.path / VOLUME_INTERVAL_NAME)
    stated = files.state.as_json()["volume_intervals"]
    assert stated["coverage"] == 0.9
    assert [(one["name"], one["n_patients"]) for one in stated["structures"]] == [("sphere", 16)]
    case = result(41)
    verdict = model_of(judged).assess(case.crop).verdict
    factors = verdict.structures[0].volume_factors
    assert factors is not None
    assert factors.low <= 1.0 <= factors.high
    interval = replace(verdict, flags=()).volume_interval(1, 2.0)
    assert interval == Interval(2.0 * factors.low, 2.0 * factors.high, 0.9)


def test_without_the_file_there_are_verdicts_without_intervals(judged: Bundle) -> None:
    (judged.path / VOLUME_INTERVAL_NAME).unlink()
    assert TrustFiles(judged).state.state == "ready"
    assert "volume_intervals" not in TrustFiles(judged).state.as_json()
    verdict = model_of(judged).assess(result(41).crop).verdict
    assert verdict.structures[0].volume_factors is None
    assert verdict.volume_interval(1, 2.0) is None


def test_what_is_flagged_or_empty_has_none(judged: Bundle) -> None:
    quality = StructureQuality(1, "sphere", 0.9, 0.8, Interval(0.9, 1.2, 0.9))
    assert Verdict("review", (quality,)).volume_interval(1, 10.0) == Interval(9.0, 12.0, 0.9)
    assert Verdict("review", (quality,), (UNLIKE_TRAINING,)).volume_interval(1, 10.0) is None
    assert Verdict("review", (quality,)).volume_interval(1, 0.0) is None
    assert Verdict("review", (quality,)).volume_interval(2, 10.0) is None
    part = Verdict("review", (quality,))
    assert Verdict.worst([part]).volume_interval(1, 10.0) is not None
    assert Verdict.worst([part, part]).volume_interval(1, 10.0) is None, "nothing is known of a sum"
    empty = torch.zeros_like(result(41).crop.probabilities)
    empty[0] = 1.0
    verdict = model_of(judged).assess(Crop(result(41).crop.image, empty)).verdict
    assert verdict.volume_interval(1, 5.0) is None


TREE = {"feature": [0, -1, -1], "threshold": [0.0] * 3, "left": [1, -1, -1], "right": [2, -1, -1], "value": [0.0] * 3}
Change = Callable[[dict[str, Any]], Any]
LIES: dict[str, Change] = {
    "coverage of all": lambda c: c.update(coverage=1.0),
    "coverage in per cent": lambda c: c.update(coverage=90),
    "quantile NaN": lambda c: c["structures"][0].update(quantile=float("nan")),
    "quantile of nothing": lambda c: c["structures"][0].update(quantile=0.0),
    "prediction far away": lambda c: c["structures"][0]["regressor"].update(constant=50.0),
    "errors of another length": lambda c: c["structures"][0].update(error=[0.1] * 99),
    "errors of nothing": lambda c: c["structures"][0].update(error=[0.0]),
    "trees that ask for nothing known": lambda c: c["structures"][0]["regressor"].update(trees=[TREE]),
    "label of none": lambda c: c["structures"][0].update(label=7),
    "label twice": lambda c: c["structures"].append(c["structures"][0]),
    "no structures": lambda c: c.update(structures=[]),
    "features unknown": lambda c: c["structures"][0].update(features=["luck"]),
    "features of another structure": lambda c: c["structures"][0].update(features=["unsure[2]"]),
    "by case and not how wide": lambda c: c["structures"][0].update(features=["entropy"], narrower=None),
    "more patients than cases": lambda c: c["structures"][0].update(n_patients=10**6),
    "3 million entries": lambda c: c.update(cleaning=[1] * 3_000_000),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_damage(judged: Bundle, lie: str) -> None:
    path = judged.path / VOLUME_INTERVAL_NAME
    content = json.loads(path.read_text())
    LIES[lie](content)
    path.write_text(json.dumps(content))
    state = TrustFiles(judged).state
    assert state.state == "damaged"
    assert "medseg trust fit" in state.message
    assert len(state.message) < 600


@pytest.mark.parametrize(
    ("change", "said"), [({"weights_sha256": "0" * 64}, "weights"), ({"cleaning": ["x"]}, "clean")]
)
def test_one_of_other_weights_or_another_cleaning_is_stale(judged: Bundle, change: dict[str, Any], said: str) -> None:
    path = judged.path / VOLUME_INTERVAL_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert TrustFiles(judged).state.state == "stale"
    found = [one for one in verify(judged.path) if one.file == VOLUME_INTERVAL_NAME]
    assert [one.severity for one in found] == ["block"]
    assert said in found[0].what


def test_no_file_of_another_kind_crashes(judged: Bundle, tmp_path: Path) -> None:
    content = json.loads((judged.path / VOLUME_INTERVAL_NAME).read_text())
    content["structures"][0].update(features=["entropy"], narrower=0.5, error_at=[0.0, 0.5], error=[0.1, 0.2])
    content["structures"][0]["regressor"]["trees"] = [TREE]
    file = tmp_path / "part.json"
    assert crashes(file, content, lambda: VolumeInterval.read(file), step=3) == []
    with pytest.raises(BundleError, match="medseg trust fit"):
        VolumeInterval.read(tmp_path / "none.json")
