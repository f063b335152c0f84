"""Remedies on request: a linear function of position stays exact under linear interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg.errors import Refusal
from medseg.ingest import read_volume
from tests.ingest.synthetic import COLUMNS, OBLIQUE, ROWS, Series, make_series, set_pixels

GRADIENT = np.array([3.0, 5.0, 7.0])


def _linear(item: Dataset) -> None:
    """Pixels that are a linear function of their position (LPS, mm), rounded to whole numbers at slope 0.01."""
    origin = np.array(item.ImagePositionPatient, dtype=float)
    axes = np.array(item.ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, across = (float(v) for v in item.PixelSpacing)
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    places = origin + columns[..., None] * across * axes[0] + rows[..., None] * down * axes[1]
    set_pixels(item, np.rint((places @ GRADIENT) * 20 + 10_000).astype(np.uint16))
    item.RescaleSlope, item.RescaleIntercept = "0.05", "-500"


def _made(distances: tuple[float, ...], tilt_degrees: float = 0.0, orientation: tuple[float, ...] = OBLIQUE) -> Series:
    return make_series(
        distances, tilt_degrees=tilt_degrees, orientation=orientation, change=lambda item, _: _linear(item)
    )


@pytest.mark.parametrize(
    ("distances", "tilt_degrees", "because"),
    [
        ((0, 3, 6, 9, 15, 21, 27), 0.0, "uneven slice spacing"),
        ((0, 2.5, 5.3, 7.5, 10), 0.0, "uneven slice spacing"),
        (tuple(2.5 * k for k in range(8)), 15.0, "gantry tilt"),
        (tuple(2.5 * k for k in range(8)), -20.0, "gantry tilt"),
    ],
)
def test_resampled_values_lie_where_the_new_grid_says(
    tmp_path: Path, distances: tuple[float, ...], tilt_degrees: float, because: str
) -> None:
    folder = _made(distances, tilt_degrees).write(tmp_path)
    values, geometry, facts = read_volume(folder, allow_resample=True)
    assert facts["resampled"]["because"] == because
    assert any("resampled on request" in note for note in facts["notes"])
    assert geometry.shear_degrees < 1e-6
    assert values.shape == geometry.shape
    index = np.argwhere(np.ones(values.shape, dtype=bool))
    lps = (index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]) * [-1, -1, 1]
    difference = np.abs(values.ravel() - lps @ GRADIENT)
    inside = _inside(folder, lps) if tilt_degrees else np.ones(len(lps), dtype=bool)
    assert inside.sum() > 0.7 * ROWS * COLUMNS * len(distances)
    assert difference[inside].max() < 0.11


def _inside(folder: Path, lps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions lie within the scan as it was acquired."""
    _, acquired, _ = read_volume(folder)
    index = np.linalg.solve(acquired.affine, np.c_[lps * [-1, -1, 1], np.ones(len(lps))].T)[:3].T
    return np.asarray(((index > -1e-6) & (index < np.array(acquired.shape) - 1 + 1e-6)).all(axis=1))


def test_missing_slices_are_not_made_up(tmp_path: Path) -> None:
    folder = _made((0, 2.5, 5, 10, 12.5, 15)).write(tmp_path)
    with pytest.raises(Refusal) as caught:
        read_volume(folder, allow_resample=True)
    assert caught.value.code == "missing-slices"


def test_a_regular_series_is_not_touched(tmp_path: Path) -> None:
    folder = _made((0, 2.5, 5, 7.5)).write(tmp_path)
    plain, geometry, _ = read_volume(folder)
    asked, same, facts = read_volume(folder, allow_resample=True)
    np.testing.assert_array_equal(plain, asked)
    assert geometry.matches(same, 0.0)
    assert facts["resampled"] is None
