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
    check(target, MANY, seed=8)


def check(target: str, count: int, seed: int) -> None:
    result = run(target, count, seed)
    assert result["failures"] == []
    assert sum(result["tally"].values()) == count
    assert len({key.partition(": ")[2] for key in result["tally"]}) > 1  # some are read, some are refused
