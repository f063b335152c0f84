"""What a threshold accepts and how good that is, worked out by hand, and the choice of a threshold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medseg.json_shape import misfit
from medseg.results.accept_table import ACCEPT_FROM, ACCEPT_TABLE, NEVER, AcceptTable, PatientShare


def table(bound: Any, good: Any, own: Any = None, patients: Any = None, **asked: Any) -> AcceptTable:
    n = len(bound)
    mine = np.ones(n, dtype=bool) if own is None else np.array(own, dtype=bool)
    whose = [str(i) for i in range(n)] if patients is None else patients
    return AcceptTable.of(np.array(bound, dtype=float), np.array(good, dtype=bool), mine, whose, **asked)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (45, 50), (1, 1)])
def test_one_result_of_each_patient_gives_the_exact_interval(hits: int, n: int) -> None:
    found = PatientShare.of([True] * hits + [False] * (n - hits), [f"p{i}" for i in range(n)])
    exact = binomtest(hits, n).proportion_ci(method="exact")
    assert found.share == pytest.approx(hits / n, abs=1e-6)
    assert found.n_patients == n
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-5)


def test_a_patient_with_many_results_counts_once() -> None:
    found = PatientShare.of([True, True, True, False], ["a", "a", "a", "b"])
    assert (found.share, found.n_results, found.n_patients) == (0.5, 4, 2)
    once = PatientShare.of([True, False], ["a", "b"])
    assert (found.low, found.high) == (once.low, once.high)
    assert PatientShare.of([], []) == PatientShare(None, 0.0, 1.0, 0, 0)


def test_the_interval_over_patients_holds() -> None:
    rng = np.random.default_rng(0)
    patients, reached = np.repeat(np.arange(40), 4), 0
    for _ in range(200):
        quality = rng.beta(8, 2, 40)  # results of one patient are alike
        found = PatientShare.of(rng.random(160) < np.repeat(quality, 4), patients)
        reached += found.low <= 0.8 <= found.high
    assert reached >= 0.94 * 200


def test_each_threshold_is_counted_by_hand() -> None:
    found = table([0.9, 0.7, 0.7, NEVER, 0.6], [1, 1, 0, 1, 0], [1, 1, 1, 1, 0], good_dice=0.75).at(0.7)
    [own], [worse] = found.own, found.worse
    assert (own.accepted.share, own.accepted.n_results) == (0.75, 4)
    assert own.good.share == pytest.approx(2 / 3, abs=1e-6)
    assert own.good.n_results == 3
    assert (worse.accepted.share, worse.good.share) == (0.0, None)
    assert found.at(None).own == ()


def test_the_smallest_threshold_that_shows_the_precision_is_chosen() -> None:
    bound = np.linspace(0.5, 0.999, 200)
    assert table(bound, bound >= 0.72).choose(0.9) == 0.75  # a tenth of those from 0.70 is not good: 0.93, from 0.89
    assert table(bound, bound >= 0.0).choose(0.9) == 0.5
    assert table(bound, bound >= 0.0).choose(0.9, lowest=0.62) == 0.65
    assert table(bound, bound >= 2.0).choose(0.9) is None


def test_few_good_results_show_nothing() -> None:
    assert table([0.9] * 12, [1] * 12).choose(0.9) is None
    assert table([0.9] * 12, [1] * 12).choose(0.7) == 0.5
    assert table([NEVER] * 100, [1] * 100).choose(0.1) is None


def test_results_with_faults_must_be_good_too_as_far_as_they_are_accepted() -> None:
    bound, own = [0.9] * 100 + [0.6] * 100, [1] * 100 + [0] * 100
    assert table(bound, own, own).choose(0.9) == 0.65
    assert table(bound, [1] * 200, own).choose(0.9) == 0.5
    few = [0.9] * 100 + [0.6] * 95 + [0.9] * 5  # of five no interval would show 0.9
    assert table(few, [1] * 100 + [0] * 95 + [1] * 5, own).choose(0.9) == 0.65
    assert table(few, [1] * 100 + [0] * 96 + [1] * 4, own).choose(0.9) is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_more_precision_never_accepts_from_less(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    numbers = st.floats(0, 1).map(lambda x: round(x, 2))
    found = table(
        data.draw(st.lists(numbers, min_size=n, max_size=n)),
        data.draw(st.lists(st.integers(0, 9).map(bool), min_size=n, max_size=n)),
        data.draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        data.draw(st.lists(st.sampled_from("abcdefghijklmnopqrstuvw"), min_size=n, max_size=n)),
    )
    chosen = [found.choose(precision) for precision in (0.05, 0.3, 0.6, 0.8, 0.95)]
    assert chosen == sorted(chosen, key=lambda one: 2.0 if one is None else one)
    shares = [row.accepted.share or 0.0 for row in found.own]
    assert shares == sorted(shares, reverse=True)


def test_a_bound_that_tells_nothing_rarely_seems_to_reach_the_precision() -> None:
    rng = np.random.default_rng(0)
    n, wrong = 120, 0
    for _ in range(120):
        wrong += table(rng.beta(8, 2, n), rng.random(n) < 0.899).choose(0.9) is not None
    assert wrong <= 0.1 * 120


def test_it_comes_back_from_json_the_same() -> None:
    found = table([0.9, 0.7, 0.3], [1, 1, 0], [1, 0, 0], precision=0.9)
    content = json.loads(json.dumps(found.to_json()))
    assert misfit(content, ACCEPT_TABLE) == ""
    assert AcceptTable.from_json(content) == found
    assert [row["accept"] for row in content["own"]] == list(ACCEPT_FROM)


def test_it_says_what_an_accepted_result_is_worth() -> None:
    bound, own = [0.9] * 40 + [0.6] * 60, [1] * 80 + [0] * 20
    told = table(bound, [1] * 40 + [0] * 60, own, precision=0.9).describe(0.65)
    assert told == (
        "accepted are 50% of the network's own results, and of these 100% (91% to 100%, 40 patients) are good;"
        " accepted are 0% of results with faults; good: every Dice at least 0.80;"
        " chosen so that at least 90% of what it accepts are good"
    )
    assert table(bound, own).describe(0.65).endswith("good: every Dice at least 0.80")
    nothing = table([0.9], [1], precision=0.95).describe(None)
    assert nothing.startswith("nothing is accepted, since no threshold shows that 95% of what it accepts are good")


def test_a_table_of_somebody_elses_that_leaves_a_share_out_is_told_all_the_same() -> None:
    content = table([0.9], [1]).to_json()
    for row in content["own"]:
        row["accepted"]["share"] = None
        row["good"]["share"] = None
    assert misfit(content, ACCEPT_TABLE) == ""
    assert AcceptTable.from_json(content).describe(0.8).startswith("accepted are 0% of the network's own results")
