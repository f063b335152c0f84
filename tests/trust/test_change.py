"""The test for change: p-values by hand, bets that promise nothing, and alarms as rare as stated."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.trust import change
from medseg.trust.change import log_bets, p_values, watch_changes


def test_p_values_are_ranks_among_what_came_before_and_ties_are_broken_by_lot() -> None:
    found = p_values([5.0, 7.0, 6.0, 6.0, 1.0], [0.25, 0.5, 0.0, 0.5, 0.5])
    assert found.tolist() == pytest.approx(
        [
            0.25,  # the first one is alone: its p-value is the lot
            (0 + 0.5 * 1) / 2,  # the worst so far
            1 / 3,  # one is larger, none equal but itself
            (1 + 0.5 * 2) / 4,  # one is larger, one equal, and itself
            (4 + 0.5 * 1) / 5,
        ]
    )
    assert p_values([0, 0, 0, 0, 1, 1], [0.5] * 6).tolist() == pytest.approx([0.5] * 4 + [0.1, 1 / 6])


def test_the_statistic_is_the_sum_of_products_over_all_beginnings() -> None:
    values, lots = [1.0, 4.0, 2.0, 3.0, 5.0], [0.1, 0.2, 0.3, 0.4, 0.5]
    bets = np.exp(log_bets(p_values(values, lots)))[2:]
    sums = [sum(np.prod(bets[begin : end + 1], axis=0) for begin in range(end + 1)).mean() for end in range(3)]
    found = watch_changes({"a": values}, {"a": lots}, {"a": 0.5}, 2, 0.1)["a"]
    assert found.evidence == pytest.approx(max(sums) * 0.5 * 0.1)


def test_every_bet_has_a_mean_of_one() -> None:
    p = (np.arange(200_000) + 0.5) / 200_000
    assert np.exp(log_bets(p)).mean(axis=0) == pytest.approx(1.0, abs=2e-3)
    assert np.isfinite(log_bets(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("kind", ["values", "events", "one value"])
def test_false_alarms_are_as_rare_as_stated(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "_SMALLEST_STEP", -np.inf)  # it makes them rarer still
    streams, reference, studies, rate = 120, 30, 130, 0.9
    rng = np.random.default_rng(3)
    values = {
        "values": rng.standard_normal((streams, studies)),
        "events": (rng.random((streams, studies)) < 0.05).astype(float),
        "one value": np.zeros((streams, studies)),
    }[kind]
    series = {str(i): row.tolist() for i, row in enumerate(values)}
    lots = {name: rng.random(studies).tolist() for name in series}
    found = watch_changes(series, lots, dict.fromkeys(series, 1 / streams), reference, rate)
    told = np.array([studies if one.told is None else one.told for one in found.values()])
    assert (told >= reference).all()
    for n in (25, 50, 100):  # looked at after each of n studies; each stream has its own share of the rate
        expected = n * rate / streams
        assert 0 < (told < reference + n).mean() <= expected + 3 * np.sqrt(expected * (1 - expected) / streams)


def test_a_change_is_told_and_its_beginning_found() -> None:
    rng = np.random.default_rng(5)
    worse = np.concatenate([rng.standard_normal(150), rng.standard_normal(100) + 1.5])
    oftener = np.concatenate([rng.random(150) < 0.02, rng.random(100) < 0.4]).astype(float)
    series = {"worse": worse.tolist(), "oftener": oftener.tolist(), "usual": rng.standard_normal(250).tolist()}
    lots = {name: rng.random(250).tolist() for name in series}
    found = watch_changes(series, lots, dict.fromkeys(series, 1 / 3), 100, 1 / 1000)
    assert not found["usual"].changed
    for name in ("worse", "oftener"):
        one = found[name]
        assert one.told is not None
        assert 150 < one.told < 190
        assert abs(one.since - 150) <= 12
        assert one.evidence >= 1
    better = {"worse": (-worse).tolist()}
    assert not watch_changes(better, lots, {"worse": 1.0}, 100, 1 / 1000)["worse"].changed


def test_what_is_not_known_says_nothing() -> None:
    rng = np.random.default_rng(6)
    values = np.concatenate([rng.standard_normal(150), rng.standard_normal(60) + 2]).tolist()
    lots = rng.random(210).tolist()
    gaps = [value if keep else None for value in values for keep in (True, False)]
    plain = watch_changes({"a": values}, {"a": lots}, {"a": 1.0}, 100, 0.001)["a"]
    with_gaps = watch_changes({"a": gaps}, {"a": np.repeat(lots, 2).tolist()}, {"a": 1.0}, 200, 0.001)["a"]
    assert plain.told is not None
    assert with_gaps.told == 2 * plain.told
    assert with_gaps.evidence == pytest.approx(plain.evidence)


def test_lots_alone_give_no_alarm() -> None:
    """The same value in every study: p-values are nothing but lots, here the worst that can be drawn."""
    found = watch_changes({"a": [0.0] * 90}, {"a": [0.0] * 90}, {"a": 1.0}, 20, 0.001)["a"]
    assert found.evidence > 1
    assert not found.changed


def test_a_look_later_changes_nothing_of_before() -> None:
    rng = np.random.default_rng(7)
    values, lots = [*rng.standard_normal(120), *(rng.standard_normal(80) + 2)], rng.random(200).tolist()
    full = watch_changes({"a": values}, {"a": lots}, {"a": 1.0}, 50, 0.001)["a"]
    assert full.told is not None
    at = full.told
    assert not watch_changes({"a": values[:at]}, {"a": lots[:at]}, {"a": 1.0}, 50, 0.001)["a"].changed
    assert watch_changes({"a": values[: at + 1]}, {"a": lots[: at + 1]}, {"a": 1.0}, 50, 0.001)["a"].told == at


@pytest.mark.parametrize(("weights", "rate"), [({"a": 1.5}, 0.001), ({"a": 1.0}, 0.0), ({"a": 1.0}, 1.0)])
def test_a_rate_that_promises_nothing_is_refused(weights: dict[str, float], rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        watch_changes({"a": [1.0]}, {"a": [0.5]}, weights, 0, rate)


@pytest.mark.parametrize("value", [-0.9, -0.87, 0.1, 1.0])
def test_equal_values_are_no_change_whatever_the_lots_say(value: float) -> None:
    values = [value] * 400
    found = watch_changes({"a": values}, {"a": [1e-9] * 400}, {"a": 1.0}, 100, 0.01)["a"]
    assert found.evidence > 1.0
    assert found.told is None


def test_lots_that_alarm_by_themselves_do_not_make_a_long_stream_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, step = [], change._step

    def counted(values: change.Floats, first: int) -> tuple[int, float]:
        looked.append(len(values))
        return step(values, first)

    monkeypatch.setattr(change, "_step", counted)
    values = [0.0] * 3000
    values[150::500] = [1.0] * 6
    found = watch_changes({"a": values}, {"a": [1e-9] * 3000}, {"a": 1.0}, 200, 0.01)["a"]
    assert found.evidence > 1.0
    assert len(looked) < 10
