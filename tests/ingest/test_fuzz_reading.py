"""Damaged files are refused with a reason or loaded with a sound grid: never a crash, a hang or another error."""

from __future__ import annotations

import pytest

from benchmarks.fuzz_reading import run


@pytest.mark.slow
def test_a_few_hundred_damaged_files() -> None:
    result = run(count=400, seed=7)
    assert result["failures"] == []
    assert sum(result["tally"].values()) == 400
    assert result["peak_gib"] < 2.0
