from __future__ import annotations

import itertools
from typing import Any

from medseg.results import worst_first

CASES: dict[str, dict[str, Any]] = {
    "missed": {"verdict": "accept", "estimates": (0.9, 0.8), "measured_dice": 0.2},
    "rejected": {"verdict": "reject", "estimates": (0.4, 0.3)},
    "flagged": {"verdict": "review", "flags": ("unlike-training",), "estimates": (0.9, 0.85)},
    "reviewed": {"verdict": "review", "estimates": (0.75, 0.6)},
    "measured": {"measured_dice": 0.7},
    "unjudged": {},
    "low": {"verdict": "accept", "estimates": (0.88, 0.8)},
    "high": {"verdict": "accept", "estimates": (0.95, 0.9)},
    "refused": {"status": "refused"},
}


def test_worst_first_is_one_order() -> None:
    for shuffled in itertools.islice(itertools.permutations(CASES), 0, 362880, 40000):
        assert sorted(shuffled, key=lambda case: worst_first(case, **CASES[case])) == list(CASES)


def test_equals_stand_in_order_of_their_ids() -> None:
    assert worst_first("a", verdict="accept") < worst_first("b", verdict="accept")
