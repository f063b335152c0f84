"""Damaged files of every kind: a result or one of medseg's errors; never a crash, a hang or another error."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import run
from benchmarks.fuzz_targets import TARGETS

FEW, MANY = 50, 2000


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_some_damaged_files(target: str) -> None:
    check(target, FEW, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_thousands_of_damaged_files(target: str) -> None:
    tally = check(target, MANY, seed=8)
    assert len({key.partition(": ")[2] for key in tally}) > 1  # some are read, some are refused


def check(target: str, count: int, seed: int) -> dict[str, int]:
    result = run(target, count, seed)
    assert result["failures"] == []
    tally: dict[str, int] = result["tally"]
    assert sum(tally.values()) == count
    return tally
