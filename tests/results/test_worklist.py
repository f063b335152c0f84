from __future__ import annotations

import itertools
from typing import Any

from medseg.results import worst_first
from medseg.results.verdict import Decision, StructureQuality, Verdict


def verdict(decision: Decision, predicted: float, low: float, *flags: str) -> Verdict:
    return Verdict(decision, (StructureQuality(1, "liver", predicted, low),), flags)


CASES: dict[str, dict[str, Any]] = {
    "missed": {"trust": verdict("accept", 0.9, 0.8), "measured_dice": 0.2},
    "rejected": {"trust": verdict("reject", 0.4, 0.3)},
    "not assessed": {"trust": Verdict.not_assessed("too-large")},
    "flagged": {"trust": verdict("review", 0.9, 0.85, "unlike-training")},
    "reviewed": {"trust": verdict("review", 0.75, 0.6)},
    "measured": {"measured_dice": 0.7},
    "unjudged": {},
    "low": {"trust": verdict("accept", 0.88, 0.8)},
    "high": {"trust": verdict("accept", 0.95, 0.9)},
    "refused": {"status": "refused"},
}


def test_worst_first_is_one_order() -> None:
    for shuffled in itertools.islice(itertools.permutations(CASES), 0, 3628800, 400000):
        assert sorted(shuffled, key=lambda case: worst_first(case, **CASES[case])) == list(CASES)


def test_equals_stand_in_order_of_their_ids() -> None:
    assert worst_first("a", trust=CASES["high"]["trust"]) < worst_first("b", trust=CASES["high"]["trust"])
