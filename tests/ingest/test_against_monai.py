"""Where MONAI's own readers place voxels wrongly without a word, or fail, and this package does neither.

If MONAI becomes right in one of these cases, its test fails here, and the case may go.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImage
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medseg.errors import Refusal
from medseg.ingest import read_volume
from tests.ingest.synthetic import FIRST_MM, Series, enhanced, largest_error_mm, make_series, save, slice_at

# MONAI starts all its readers whenever a LoadImage is made, and one of them warns without its GPU library.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

WRONG_MM = 0.5


def _two_time_points() -> Series:
    one, other = make_series(), make_series(first_number=8)
    for volume, series in enumerate((one, other), start=1):
        for item in series.slices:
            item.TemporalPositionIdentifier = volume
    return Series(one.slices + other.slices)


def _two_series() -> Series:
    one, other = make_series(), make_series(first_number=8)
    for item in other.slices:
        item.SeriesInstanceUID = generate_uid(entropy_srcs=["other"])
    return Series(one.slices + other.slices)


def _two_at_one_place() -> Series:
    series = make_series()
    return Series([*series.slices, slice_at(series.slices[2].ImagePositionPatient, 30)])


def _with_localizer() -> Series:
    return Series([*make_series().slices, slice_at(FIRST_MM + np.array([0, -60, 0]), 50, (1, 0, 0, 0, 0, -1))])


def _numbers(value: int | None) -> Callable[[Dataset, int], None]:
    def change(item: Dataset, number: int) -> None:
        if value is None:
            del item.InstanceNumber
        else:
            item.InstanceNumber = value

    return change


def _thickness(item: Dataset, number: int) -> None:
    item.SliceThickness = 2.5 if number < 4 else 3.0


def _bigger_pixels(item: Dataset, number: int) -> None:
    item.PixelSpacing = [1.6, 1.4] if number == 3 else item.PixelSpacing


# scenario: (series, MONAI's reader, what is right: None = read exactly)
SCENARIOS: dict[str, tuple[Callable[[], Series], str, str | None]] = {
    "instance numbers equal": (lambda: make_series(change=_numbers(1)), "PydicomReader", None),
    "instance numbers absent": (lambda: make_series(change=_numbers(None)), "PydicomReader", None),
    "gantry tilt": (lambda: make_series(tilt_degrees=15), "ITKReader", None),
    "slice thickness differs": (lambda: make_series(change=_thickness), "ITKReader", None),
    "one slice missing": (lambda: make_series((0, 2.5, 5, 10, 12.5, 15)), "ITKReader", "missing-slices"),
    "one slice missing, pydicom": (lambda: make_series((0, 2.5, 5, 10, 12.5, 15)), "PydicomReader", "missing-slices"),
    "uneven spacing": (lambda: make_series((0, 3, 6, 9, 15, 21, 27)), "ITKReader", "non-uniform-spacing"),
    "uneven spacing, pydicom": (lambda: make_series((0, 3, 6, 9, 15, 21, 27)), "PydicomReader", "non-uniform-spacing"),
    "two time points": (_two_time_points, "ITKReader", "several-volumes"),
    "two time points, pydicom": (_two_time_points, "PydicomReader", "several-volumes"),
    "two series": (_two_series, "PydicomReader", "several-volumes"),
    "two images at one place": (_two_at_one_place, "ITKReader", "duplicate-slices"),
    "a localizer beside": (_with_localizer, "PydicomReader", None),
    "one slice of another spacing": (lambda: make_series(change=_bigger_pixels), "ITKReader", "mixed-grid"),
}


def _monai_error_mm(source: Path, reader: str, series: Series) -> float:
    """How far MONAI misplaces a voxel at most; infinite if it raises or leaves out part of the volume."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = LoadImage(reader=reader, image_only=True)(source)
    except Exception:  # noqa: BLE001 - any failure of the other reader is what is shown here
        return float("inf")
    values = image.numpy()
    if values.size < sum(item.Rows * item.Columns for item in series.slices):
        return float("inf")
    return largest_error_mm(values, image.affine.numpy(), series.truth())


@pytest.mark.parametrize(("make", "reader", "reason"), SCENARIOS.values(), ids=SCENARIOS.keys())
def test_monai_is_wrong_and_we_are_right(
    tmp_path: Path, make: Callable[[], Series], reader: str, reason: str | None
) -> None:
    series = make()
    folder = series.write(tmp_path / "series")
    assert _monai_error_mm(folder, reader, series) > WRONG_MM
    if reason is None:
        values, geometry, _ = read_volume(folder)
        assert largest_error_mm(values, geometry.affine, series.truth()) < 1e-6
    else:
        with pytest.raises(Refusal) as caught:
            read_volume(folder)
        assert caught.value.code == reason


@pytest.mark.parametrize(
    ("order", "reason"),
    [((0, 1, 2, 4, 5, 6, 7), "missing-slices"), ((3, 0, 7, 5, 1, 6, 2, 4), None)],
    ids=["gap", "shuffled"],
)
@pytest.mark.parametrize("reader", ["ITKReader", "PydicomReader"])
def test_enhanced_frames(tmp_path: Path, reader: str, order: tuple[int, ...], reason: str | None) -> None:
    series = make_series()
    path = save(enhanced(series, order=order), tmp_path / "enhanced.dcm")
    kept = Series([series.slices[i] for i in sorted(order)])
    assert _monai_error_mm(path, reader, kept) > WRONG_MM
    if reason is None:
        values, geometry, _ = read_volume(path)
        assert largest_error_mm(values, geometry.affine, series.truth()) < 1e-6
    else:
        with pytest.raises(Refusal, match=reason):
            read_volume(path)


def test_itk_inverts_monochrome1(tmp_path: Path) -> None:
    def invert(item: Dataset, number: int) -> None:
        item.PhotometricInterpretation = "MONOCHROME1"

    folder = make_series(change=invert).write(tmp_path)
    theirs = LoadImage(reader="ITKReader", image_only=True)(folder).numpy()
    ours, *_ = read_volume(folder)
    assert not np.array_equal(np.sort(theirs.ravel()), np.sort(ours.ravel()))
    assert int(ours.min()) == 1


def test_itk_rounds_to_the_first_slices_type(tmp_path: Path) -> None:
    def rescale(item: Dataset, number: int) -> None:
        item.RescaleSlope, item.RescaleIntercept = ("1", "0") if number == 0 else ("0.37", "-3.5")

    series = make_series(change=rescale)
    folder = series.write(tmp_path)
    theirs = LoadImage(reader="ITKReader", image_only=True)(folder).numpy()
    ours, *_ = read_volume(folder)
    expected = np.stack(
        [s.pixel_array.T * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in series.slices], -1
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert np.abs(np.sort(theirs.ravel()) - np.sort(expected.ravel())).max() > 0.3
