from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medseg.evaluation import Bootstrap, StructureResult, compare, subgroups
from medseg.evaluation.statistics import Summary, holm, summarise, summarise_structures

QUICK = Bootstrap(resamples=400)


def row(
    case: str,
    dice: float | None,
    *,
    hd95: float | None = 1.0,
    label: int = 1,
    missed: bool = False,
    invented: bool = False,
) -> StructureResult:
    values = {"dice": dice, "nsd": dice, "hd95_mm": hd95, "assd_mm": hd95, "volume_ml": 1.0}
    return StructureResult(label, f"s{label}", values, missed, invented, case_id=case)


def missed(case: str) -> StructureResult:
    return row(case, 0.0, hd95=None, missed=True)


def test_a_perfect_case_beside_a_missed_one_says_so() -> None:
    table = summarise_structures([row("a", 1.0, hd95=0.0), missed("b")], {}, QUICK)["s1"]
    assert (table["n"], table["n_missed"], table["n_invented"], table["n_absent"]) == (2, 1, 0, 0)
    assert table["metrics"]["dice"]["mean"] == 0.5
    assert (table["metrics"]["hd95_mm"]["mean"], table["metrics"]["hd95_mm"]["n"]) == (0.0, 1)


def test_a_structure_missed_everywhere_has_no_distance_and_dice_zero() -> None:
    table = summarise_structures([missed("a"), missed("b")], {}, QUICK)["s1"]
    assert (table["n"], table["n_missed"]) == (2, 2)
    assert table["metrics"]["dice"]["mean"] == 0.0
    assert "hd95_mm" not in table["metrics"] or table["metrics"]["hd95_mm"]["mean"] is None


def test_absent_structures_are_counted_and_not_averaged() -> None:
    table = summarise_structures([row("a", 0.8), row("b", None, hd95=None)], {}, QUICK)["s1"]
    assert (table["n"], table["n_absent"]) == (1, 1)
    assert table["metrics"]["dice"]["mean"] == 0.8
    assert table["metrics"]["volume_ml"]["n"] == 1


def test_the_summary_is_what_numpy_finds() -> None:
    values = np.array([0.5, 0.7, 0.9, 1.0, np.nan])
    [summary] = summarise(values[:, None], list("abcde"), QUICK)
    assert summary.n == 4
    assert summary.mean == pytest.approx(0.775)
    assert summary.std == pytest.approx(np.std([0.5, 0.7, 0.9, 1.0], ddof=1))
    assert [summary.median, summary.q1, summary.q3] == pytest.approx([0.8, 0.65, 0.925])
    assert (summary.min, summary.max) == (0.5, 1.0)
    assert summary.ci95 is not None
    assert summary.ci95[0] < 0.775 < summary.ci95[1]


def test_one_patient_has_no_interval_and_no_value_has_nothing() -> None:
    [one, none] = summarise(np.array([[0.5, np.nan], [0.7, np.nan]]), ["p", "p"], QUICK)
    assert one.mean == pytest.approx(0.6)
    assert one.ci95 is None
    assert none == Summary(0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(0.0, 1.0, (40, 300))
    intervals = Bootstrap(resamples=500).intervals(samples, [str(i) for i in range(40)])
    covered = float(((intervals[:, 0] < 0) & (intervals[:, 1] > 0)).mean())
    assert 0.89 < covered < 0.98


def test_scans_of_one_patient_are_not_independent() -> None:
    """Ten scans each of four patients: the interval by patient is as wide as four observations allow."""
    per_patient = np.array([0.2, 0.4, 0.6, 0.8])
    values = np.repeat(per_patient, 10)[:, None]
    by_patient = Bootstrap().intervals(values, [f"p{i // 10}" for i in range(40)])[0]
    by_scan = Bootstrap().intervals(values, [str(i) for i in range(40)])[0]
    assert np.diff(by_patient) > 2.5 * np.diff(by_scan)


def test_intervals_can_be_reproduced() -> None:
    values = np.random.default_rng(1).random((9, 2))
    patients = [str(i) for i in range(9)]
    first, second = (Bootstrap(seed=3).intervals(values, patients) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, Bootstrap(seed=4).intervals(values, patients))


@settings(max_examples=50, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_textbook_procedure(p: list[float]) -> None:
    corrected = holm(p)
    ordered = sorted(range(len(p)), key=lambda i: p[i])
    running = 0.0
    for rank, index in enumerate(ordered):
        running = max(running, min(1.0, p[index] * (len(p) - rank)))
        assert corrected[index] == pytest.approx(running)


def two_models(shift: float, n: int = 12) -> tuple[list[StructureResult], list[StructureResult]]:
    generator = np.random.default_rng(0)
    dice = generator.uniform(0.6, 0.8, n)
    noise = generator.normal(0, 0.01, n)
    better = [
        row(f"c{i}", float(d + shift + e), hd95=float(3 - shift))
        for i, (d, e) in enumerate(zip(dice, noise, strict=True))
    ]
    return better, [row(f"c{i}", float(d), hd95=3.0) for i, d in enumerate(dice)]


def test_a_better_model_is_found_better() -> None:
    better, worse = two_models(0.1)
    for first, second, sign in ((better, worse, 1.0), (worse, better, -1.0)):
        tests = {test["metric"]: test for test in compare(first, second, {}, ("dice", "hd95_mm"), QUICK)}
        assert tests["dice"]["effect_size"] == sign
        assert tests["hd95_mm"]["effect_size"] == sign
        assert tests["dice"]["p_holm"] < 0.05
        assert tests["dice"]["difference"]["mean"] == pytest.approx(sign * 0.1, abs=0.01)


def test_p_values_are_scipys_and_corrected_for_their_number() -> None:
    better, worse = two_models(0.005)
    tests = compare(better, worse, {}, ("dice", "nsd"), QUICK)
    differences = [a.values["dice"] - b.values["dice"] for a, b in zip(better, worse, strict=True)]  # type: ignore[operator]
    expected = stats.wilcoxon(differences).pvalue
    assert [test["p"] for test in tests] == [pytest.approx(expected)] * 2
    assert [test["p_holm"] for test in tests] == [pytest.approx(min(1.0, 2 * expected))] * 2


def test_identical_results_show_no_difference() -> None:
    same, _ = two_models(0.0)
    for test in compare(same, same, {}, ("dice", "hd95_mm"), QUICK):
        assert (test["p"], test["effect_size"], test["difference"]["mean"]) == (1.0, 0.0, 0.0)


def test_a_miss_on_one_side_is_worse_than_any_distance() -> None:
    reliable = [row(f"c{i}", 0.7, hd95=5.0) for i in range(8)]
    risky = [row(f"c{i}", 0.9, hd95=4.0) for i in range(4)] + [missed(f"c{i}") for i in range(4, 8)]
    [test] = compare(reliable, risky, {}, ("hd95_mm",), QUICK)
    assert test["n_one_sided"] == 4
    assert (test["n_missed_first"], test["n_missed_second"]) == (0, 4)
    assert test["effect_size"] > 0
    assert test["difference"]["n"] == 4


def test_too_few_patients_are_not_tested_and_burden_nobody() -> None:
    better, worse = two_models(0.1, n=12)
    rare = [row(f"c{i}", 0.9, label=2) for i in range(3)]
    tests = compare(better + rare, worse + rare, {}, ("dice",), QUICK)
    assert [test["p_holm"] is None for test in tests] == [False, True]
    assert tests[0]["p_holm"] == tests[0]["p"]


def test_subgroups_have_their_own_tables() -> None:
    results = [row("a", 0.9), row("b", 0.5), row("c", 0.7)]
    tables = subgroups(results, {"a": "site 1", "b": "site 2"}, {}, QUICK)
    assert {group: table["s1"]["metrics"]["dice"]["mean"] for group, table in tables.items()} == {
        "(none)": 0.7,
        "site 1": 0.9,
        "site 2": 0.5,
    }
