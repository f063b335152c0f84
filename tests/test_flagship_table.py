"""The comparison of the folds with a peer: case by case, one value for each patient."""

from __future__ import annotations

import pytest

from benchmarks.flagship_table import against_peer

PATIENTS = {"a": "p1", "b": "p1", "c": "p2", "d": "p3"}
PEER = {"a": 0.8, "b": 0.8, "c": 0.9, "d": 0.7}


def _rows(**dice: tuple[float, float]) -> list[dict[str, str]]:
    return [{"case_id": case, "dice": str(value)} for case, both in dice.items() for value in both]


def test_crops_of_a_patient_count_once_and_structures_are_averaged() -> None:
    told = against_peer(_rows(a=(0.9, 0.9), b=(0.7, 0.7), c=(0.95, 0.91), d=(0.72, 0.74)), PEER, PATIENTS)
    assert told.startswith("ours 0.8150 (worst 0.700), peer 0.8000 (worst 0.700); 3 patients: +2.00 points")
    assert "better in 2," in told  # +0.1 and -0.1 of one patient are nothing
    assert "Wilcoxon p = " in told


def test_a_case_without_a_partner_is_refused() -> None:
    with pytest.raises(SystemExit, match="no Dice of 1 cases, the first is e"):
        against_peer(_rows(a=(0.9, 0.9), e=(0.9, 0.9)), PEER, {**PATIENTS, "e": "p4"})
