"""The rule that makes accept, review or reject of estimates and flags, and the form of a verdict in ``run.json``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from medseg.results.verdict import TOO_LARGE, Decision, FaultKind, StructureQuality, Thresholds, Verdict

GOOD = StructureQuality(1, "small", 0.9, 0.85)
FAIR = StructureQuality(2, "large", 0.9, 0.7)
POOR = StructureQuality(2, "large", 0.4, 0.1)


@pytest.mark.parametrize(
    ("structures", "decision"),
    [([GOOD], "accept"), ([GOOD, FAIR], "review"), ([GOOD, POOR], "reject"), ([], "review")],
)
def test_the_decision_follows_the_stated_thresholds(structures: list[StructureQuality], decision: str) -> None:
    assert Thresholds(accept=0.8, reject=0.5).decide(structures) == decision


@pytest.mark.parametrize(("decision", "expected"), [("accept", "review"), ("review", "review"), ("reject", "reject")])
def test_what_is_flagged_is_never_accepted(decision: Decision, expected: str) -> None:
    assert Verdict(decision, (GOOD,), ("unlike-training",)).decision == expected
    assert Verdict(decision, (GOOD,)).decision == decision


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="accept"):
        Thresholds(accept=1.5)


def test_json_keeps_it_to_six_places() -> None:
    third = StructureQuality(2, "large", 0.33333377, 0.1)
    verdict = Verdict("review", (GOOD, third), ("implausible-shape",), (1.0, -2.5, 3.0), FaultKind("noise", 0.51234))
    content: dict[str, Any] = json.loads(json.dumps(verdict.to_json()))
    assert content == {
        "predicted_dice": 0.616667,
        "lower_bound": 0.1,
        "verdict": "review",
        "structures": [
            {"label": 1, "name": "small", "predicted_dice": 0.9, "lower_bound": 0.85},
            {"label": 2, "name": "large", "predicted_dice": 0.333334, "lower_bound": 0.1},
        ],
        "flags": ["implausible-shape"],
        "look_at_mm": [1.0, -2.5, 3.0],
        "case_class": {"name": "noise", "probability": 0.5123},
    }
    assert Verdict.from_json(content).to_json() == content


def test_a_result_that_was_not_assessed_is_to_be_reviewed() -> None:
    content = Verdict.not_assessed(TOO_LARGE).to_json()
    assert (content["verdict"], content["flags"], content["structures"]) == ("review", ["too-large"], [])
    assert content["predicted_dice"] is content["lower_bound"] is content["look_at_mm"] is content["case_class"] is None
    assert Verdict.from_json(content) == Verdict.not_assessed(TOO_LARGE)


@pytest.mark.parametrize("content", [{}, {"verdict": "perhaps"}, {"verdict": "accept", "look_at_mm": [1.0]}])
def test_what_is_no_verdict_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises((ValueError, LookupError)):
        Verdict.from_json(content)
