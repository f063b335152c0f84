"""Positions written with few digits: one regular grid explains them, or they are uneven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.ingest import read_volume
from tests.ingest.synthetic import make_series
from tests.ingest.verdicts import USABLE, pixels_of, values_of, verdict


def _written(
    spacing_mm: float, digits: int, off: Callable[[int], float] = lambda _: 0.0
) -> Callable[[Dataset, int], None]:
    def write(item: Dataset, number: int) -> None:
        z = 30 + spacing_mm * number + off(number)
        item.ImagePositionPatient = [f"{-20:.{digits}f}", f"{10:.{digits}f}", f"{z:.{digits}f}"]

    return write


@pytest.mark.parametrize(("spacing_mm", "digits"), [(1.25, 1), (1.33, 1), (0.625, 1), (0.333, 2), (2.5, 0), (3.3, 0)])
@pytest.mark.parametrize("count", [3, 12, 60])
def test_rounded_positions_are_read_on_the_grid_that_explains_them(
    tmp_path: Path, spacing_mm: float, digits: int, count: int
) -> None:
    series = make_series(range(count), change=_written(spacing_mm, digits))
    assert verdict(series.write(tmp_path))[0] == USABLE
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))
    geometry = read_volume(tmp_path)[1]
    places = geometry.affine[2, 3] + geometry.affine[2, 2] * np.arange(count)
    assert np.abs(places - (30 + spacing_mm * np.arange(count))).max() <= 0.05 + 0.5 * 10.0**-digits


def test_the_fit_is_noted(tmp_path: Path) -> None:
    notes = verdict(make_series(range(12), change=_written(1.25, 1)).write(tmp_path))[1]
    assert "positions are written to 0.1 mm" in notes


@pytest.mark.parametrize("digits", [1, 2])
def test_a_slice_that_is_really_off_stays_refused(tmp_path: Path, digits: int) -> None:
    series = make_series(range(12), change=_written(1.25, digits, lambda number: 0.3 * (number == 6)))
    assert verdict(series.write(tmp_path))[0] == "non-uniform-spacing"


@pytest.mark.parametrize(("spacing_mm", "digits"), [(1.25, 1), (1.33, 1), (3.0, 0)])
@pytest.mark.parametrize("gone", [1, 5, 10])
def test_a_missing_slice_is_seen_between_rounded_positions(
    tmp_path: Path, spacing_mm: float, digits: int, gone: int
) -> None:
    series = make_series(range(12), change=_written(spacing_mm, digits))
    del series.slices[gone]
    assert verdict(series.write(tmp_path))[0] == "missing-slices"


def test_whole_millimetres_do_not_hide_a_spacing_that_changes(tmp_path: Path) -> None:
    series = make_series(range(8), change=_written(3.0, 0, lambda number: max(0, number - 4)))
    assert verdict(series.write(tmp_path))[0] == "non-uniform-spacing"
