"""A number that is there and cannot be read is never taken as absent; a rescale that slices lack, never as 1 and 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from tests.ingest.synthetic import enhanced, make_series, save
from tests.ingest.verdicts import USABLE, pixels_of, raw_value, some, values_of, verdict, without

SLOPE, INTERCEPT = (0x0028, 0x1053), (0x0028, 0x1052)
SPACING, POSITION, ORIENTATION = (0x0028, 0x0030), (0x0020, 0x0032), (0x0020, 0x0037)
THICKNESS, BETWEEN, FRAMES = (0x0018, 0x0050), (0x0018, 0x0088), (0x0028, 0x0008)


def _hounsfield(item: Dataset, _: int) -> None:
    item.RescaleSlope, item.RescaleIntercept, item.SpacingBetweenSlices = "1", "-1024", "2.5"


@pytest.mark.parametrize("chosen", ["first", "middle", "last", "all"])
@pytest.mark.parametrize(
    ("tag", "value", "code", "says"),
    [
        (INTERCEPT, b"-1024,0", "undecodable", "'-1024,0' (a decimal comma)"),
        (SLOPE, b"1,0", "undecodable", "decimal comma"),
        (INTERCEPT, b"NaN", "undecodable", "'NaN'"),
        (SLOPE, b"inf", "undecodable", "'inf'"),
        (INTERCEPT, b"", "undecodable", "empty"),
        (SLOPE, b"one", "undecodable", "some text"),
        (SLOPE, b"1\\1", "undecodable", "expected a finite number"),
        (INTERCEPT, b"-1_024", "undecodable", "-1_024"),
        (SPACING, b"0,8\\0,7", "unreadable", "decimal comma"),
        (SPACING, b"0.8", "unreadable", "expected 2 finite numbers"),
        (POSITION, b"-31,5\\-22,25\\100", "unreadable", "decimal comma"),
        (POSITION, b"nan\\-22.25\\100", "unreadable", "nan"),
        (ORIENTATION, b"1\\0\\0\\0\\1", "unreadable", "expected 6 finite numbers"),
    ],
)
def test_a_number_that_is_none_is_refused_by_its_name(
    tmp_path: Path, tag: tuple[int, int], value: bytes, code: str, says: str, chosen: str
) -> None:
    files = sorted(make_series(change=_hounsfield).write(tmp_path).iterdir())
    for number in some(len(files), chosen):
        raw_value(files[number], tag, value)
    found, message = verdict(tmp_path)
    assert found == code
    assert says in message


@pytest.mark.parametrize("tag", [THICKNESS, BETWEEN])
def test_a_thickness_with_a_comma_is_noted_where_the_positions_give_the_spacing(
    tmp_path: Path, tag: tuple[int, int]
) -> None:
    series = make_series(change=_hounsfield)
    for path in series.write(tmp_path).iterdir():
        raw_value(path, tag, b"2,5")
    found, notes = verdict(tmp_path)
    assert found == USABLE
    assert "decimal comma" in notes
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series).astype(int) - 1024)


def test_a_plain_sign_an_exponent_and_blanks_are_numbers(tmp_path: Path) -> None:
    series = make_series(change=_hounsfield)
    for path in series.write(tmp_path).iterdir():
        raw_value(path, INTERCEPT, b"-1.024E3 ")
        raw_value(path, SLOPE, b" +1.")
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series).astype(int) - 1024)


@pytest.mark.parametrize("chosen", ["first", "middle", "last"])
@pytest.mark.parametrize("absent", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)])
def test_a_rescale_absent_in_one_slice_is_refused(tmp_path: Path, chosen: str, absent: tuple[str, ...]) -> None:
    series = make_series(change=_hounsfield)
    without(series.slices[some(8, chosen)[0]], *absent)
    assert verdict(series.write(tmp_path))[0] in ("mixed-rescale", "undecodable")


def test_half_a_rescale_in_all_slices_is_refused(tmp_path: Path) -> None:
    series = make_series(change=_hounsfield)
    for item in series.slices:
        without(item, "RescaleSlope")
    code, message = verdict(series.write(tmp_path))
    assert code == "undecodable"
    assert "only one of" in message


def test_ct_without_any_rescale_is_read_as_stored_with_a_note(tmp_path: Path) -> None:
    series = make_series()
    found, notes = verdict(series.write(tmp_path))
    assert found == USABLE
    assert "may not be HU" in notes
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))


def _lost(item: Dataset) -> None:
    del item.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence


def _half(item: Dataset) -> None:
    del item.PerFrameFunctionalGroupsSequence[7].PixelValueTransformationSequence[0].RescaleIntercept


def _shared_half(item: Dataset) -> None:
    for group in item.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    shared = Dataset()
    shared.RescaleSlope = "2"
    item.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = DicomSequence([shared])


@pytest.mark.parametrize(
    ("spoil", "code"), [(_lost, "mixed-rescale"), (_half, "unreadable"), (_shared_half, "unreadable")]
)
def test_a_rescale_that_some_frames_lack_is_refused(
    tmp_path: Path, spoil: Callable[[Dataset], None], code: str
) -> None:
    item = enhanced(make_series())
    spoil(item)
    save(item, tmp_path / "enhanced.dcm")
    assert verdict(tmp_path)[0] == code


def test_a_decimal_comma_in_a_frame_is_refused_by_its_name(tmp_path: Path) -> None:
    path = save(enhanced(make_series()), tmp_path / "enhanced.dcm")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"DS\x08\x000.8\\0.7 ", b"DS\x08\x000,8\\0,7 "))
    assert path.read_bytes() != data
    code, message = verdict(tmp_path)
    assert code == "unreadable"
    assert "decimal comma" in message


@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_number_of_frames_below_one_is_refused(tmp_path: Path, value: str) -> None:
    series = make_series()
    for item in series.slices:
        item.NumberOfFrames = value
    assert verdict(series.write(tmp_path))[0] == "unreadable"


@pytest.mark.parametrize("absent", ["PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"])
@pytest.mark.parametrize("chosen", ["first", "middle", "last"])
def test_a_slice_without_geometry_is_not_left_out(tmp_path: Path, chosen: str, absent: str) -> None:
    series = make_series()
    without(series.slices[some(8, chosen)[0]], absent)
    assert verdict(series.write(tmp_path))[0] == "no-geometry"
