"""What goes wrong silently with DICOM series elsewhere: here each is read exactly, or refused with the right reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage, generate_uid

from medseg.errors import Refusal, UsageError
from medseg.ingest import read_volume
from medseg.ingest.read_dicom import read_headers
from medseg.ingest.stacks import Stack, split
from tests.ingest.synthetic import (
    AXIAL,
    COLUMNS,
    FIRST_MM,
    OBLIQUE,
    PIXELS,
    ROWS,
    Series,
    encoded,
    enhanced,
    largest_error_mm,
    make_series,
    save,
    set_pixels,
    slice_at,
)

EXACT_MM = 1e-6


def error_mm(folder: Path, series: Series) -> float:
    values, geometry, _ = read_volume(folder)
    return largest_error_mm(values, geometry.affine, series.truth())


def stacks_in(folder: Path) -> list[Stack]:
    return split(read_headers(sorted(folder.rglob("*"))))


def refusal_of(folder: Path | Sequence[Path]) -> str:
    with pytest.raises(Refusal) as caught:
        read_volume(folder)
    return caught.value.code


# --- read exactly -------------------------------------------------------------------------------------------------


def _number_shuffled(item: Dataset, number: int) -> None:
    item.InstanceNumber = [5, 2, 7, 1, 8, 3, 6, 4][number]


def _number_equal(item: Dataset, number: int) -> None:
    item.InstanceNumber = 1


def _number_absent(item: Dataset, number: int) -> None:
    del item.InstanceNumber


def _thickness_differs(item: Dataset, number: int) -> None:
    item.SliceThickness = 2.5 if number < 4 else 3.0


def _date_differs(item: Dataset, number: int) -> None:
    item.SeriesDate = "20200101" if number < 4 else "20200102"
    item.AcquisitionNumber = number


def _echo_differs_a_little(item: Dataset, number: int) -> None:
    item.EchoTime = 2.5 + 1e-4 * number


def _monochrome1(item: Dataset, number: int) -> None:
    item.PhotometricInterpretation = "MONOCHROME1"


def _without_series_number(item: Dataset, number: int) -> None:
    del item.SeriesNumber
    del item.SeriesDescription


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize(
    "change",
    [
        None,
        _number_shuffled,
        _number_equal,
        _number_absent,
        _thickness_differs,
        _date_differs,
        _echo_differs_a_little,
        _monochrome1,
        _without_series_number,
    ],
)
def test_every_voxel_is_where_its_header_says(
    tmp_path: Path, change: Callable[[Dataset, int], None] | None, orientation: Sequence[float]
) -> None:
    series = make_series(orientation=orientation, change=change)
    assert error_mm(series.write(tmp_path), series) < EXACT_MM


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    series = make_series()
    files = sorted(series.write(tmp_path).iterdir())
    first, *_ = read_volume(files)
    second, *_ = read_volume(files[::-1])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("tilt_degrees", [15.0, -22.0])
def test_a_gantry_tilt_keeps_its_exact_sheared_affine_and_is_noted(tmp_path: Path, tilt_degrees: float) -> None:
    series = make_series(tilt_degrees=tilt_degrees)
    values, geometry, facts = read_volume(series.write(tmp_path))
    assert largest_error_mm(values, geometry.affine, series.truth()) < EXACT_MM
    assert geometry.is_sheared
    assert any(f"tilt of {abs(tilt_degrees):.2f}°" in note for note in facts["notes"])


def test_rounding_noise_in_positions_and_orientations_is_accepted(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def jitter(item: Dataset, number: int) -> None:
        moved = np.array(item.ImagePositionPatient, dtype=float) + noise.uniform(-0.02, 0.02, 3) * (
            number not in (0, 7)
        )
        item.ImagePositionPatient = [round(float(v), 6) for v in moved]
        turned = np.array(item.ImageOrientationPatient, dtype=float) + noise.uniform(-1e-6, 1e-6, 6)
        item.ImageOrientationPatient = [round(float(v), 9) for v in turned]

    series = make_series(change=jitter)
    assert error_mm(series.write(tmp_path), series) < 0.05


def test_a_copy_of_a_slice_is_left_out_and_noted(tmp_path: Path) -> None:
    series = make_series()
    folder = series.write(tmp_path)
    save(series.slices[3], folder / "copy.dcm")
    values, geometry, facts = read_volume(folder)
    assert largest_error_mm(values, geometry.affine, series.truth()) < EXACT_MM
    assert any("second copies" in note for note in facts["notes"])


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(item: Dataset, number: int) -> None:
        item.RescaleSlope, item.RescaleIntercept = str(0.25 + number), str(-3.5 * number)

    series = make_series(change=rescale)
    values, _, facts = read_volume(series.write(tmp_path))
    assert values.dtype == np.float32
    for k in range(8):
        np.testing.assert_array_equal(values[..., k], (encoded(k) * (0.25 + k) - 3.5 * k).T.astype(np.float32))
    assert len(facts["rescale"]) == 8


def test_hounsfield_units_stay_exact_integers(tmp_path: Path) -> None:
    def hounsfield(item: Dataset, number: int) -> None:
        set_pixels(item, encoded(number), bits_stored=12)
        item.RescaleSlope, item.RescaleIntercept = "1", "-1024"

    values, *_ = read_volume(make_series(change=hounsfield).write(tmp_path))
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values[..., 5], encoded(5).T.astype(int) - 1024)


def test_monochrome1_keeps_stored_values_and_is_noted(tmp_path: Path) -> None:
    values, _, facts = read_volume(make_series(change=_monochrome1).write(tmp_path))
    np.testing.assert_array_equal(values[..., 0], encoded(0).T)
    assert any("MONOCHROME1" in note for note in facts["notes"])


def test_padding_is_noted_and_kept(tmp_path: Path) -> None:
    def padded(item: Dataset, number: int) -> None:
        item.add_new(0x00280120, "US", 7)

    _, _, facts = read_volume(make_series(change=padded).write(tmp_path))
    assert facts["padding"] == (7,)
    assert any("padding value 7" in note for note in facts["notes"])


def test_segmentations_and_reports_beside_the_images_are_passed_over(tmp_path: Path) -> None:
    series = make_series()
    folder = series.write(tmp_path)
    beside = slice_at(FIRST_MM, 40)
    beside.SOPClassUID, beside.Modality = SegmentationStorage, "SEG"
    save(beside, folder / "seg.dcm")
    report = slice_at(FIRST_MM, 41)
    report.SOPClassUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.33", "SR"
    report.SeriesInstanceUID = generate_uid()
    del report.PixelData
    save(report, folder / "sr.dcm")
    assert error_mm(folder, series) < EXACT_MM
    assert sorted(stack.reason or "usable" for stack in stacks_in(folder)) == ["not-an-image", "not-an-image", "usable"]


def test_a_localizer_in_the_series_is_a_stack_of_its_own(tmp_path: Path) -> None:
    series = make_series()
    folder = series.write(tmp_path)
    save(slice_at(FIRST_MM + np.array([0, -60, 0]), 50, (1, 0, 0, 0, 0, -1)), folder / "scout.dcm")
    assert error_mm(folder, series) < EXACT_MM
    first, second = stacks_in(folder)
    assert (first.usable, first.suffix, second.reason, second.suffix) == (True, "", "single-slice", "-2")
    assert second.case_id == first.case_id + "-2"


def test_other_files_and_pipes_in_the_folder_do_not_disturb(tmp_path: Path) -> None:
    series = make_series()
    folder = series.write(tmp_path)
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    assert error_mm(folder, series) < EXACT_MM


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    series = make_series()
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xe9rie"))
    try:
        series.write(odd)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    for file in list(odd.iterdir()):
        file.rename(os.fsdecode(os.fsencode(file) + b"-\xff"))
    assert error_mm(odd, series) < EXACT_MM


# --- split into volumes -------------------------------------------------------------------------------------------


def _two_volumes(mark: Callable[[Dataset, int], None], **options: Any) -> tuple[Series, Series]:
    """Two volumes at the same places in one series, told apart by ``mark(slice, volume)``."""
    return (
        make_series(change=lambda item, _: mark(item, 0), **options),
        make_series(change=lambda item, _: mark(item, 1), first_number=8, **options),
    )


def _echo(item: Dataset, volume: int) -> None:
    item.EchoTime, item.EchoNumbers = [2.46, 4.92][volume], volume + 1


def _b_value(item: Dataset, volume: int) -> None:
    item.add_new(0x00189087, "FD", [0.0, 1000.0][volume])


def _time_point(item: Dataset, volume: int) -> None:
    item.TemporalPositionIdentifier = volume + 1


def _acquisition(item: Dataset, volume: int) -> None:
    item.AcquisitionNumber = volume + 1


def _kind_of_image(item: Dataset, volume: int) -> None:
    item.ImageType = ["ORIGINAL", "PRIMARY", "MP"[volume]]


def _clock(item: Dataset, volume: int) -> None:
    item.AcquisitionDate = "20200101"
    item.AcquisitionTime = f"1200{30 * volume + item.InstanceNumber % 8:02d}.5"


@pytest.mark.parametrize("mark", [_echo, _b_value, _time_point, _acquisition, _kind_of_image, _clock])
def test_volumes_that_share_a_series_are_told_apart(tmp_path: Path, mark: Callable[[Dataset, int], None]) -> None:
    one, other = _two_volumes(mark)
    Series(one.slices + other.slices).write(tmp_path)
    assert refusal_of(tmp_path) == "several-volumes"
    stacks = stacks_in(tmp_path)
    assert [stack.usable for stack in stacks] == [True, True]
    assert [stack.suffix for stack in stacks] == ["", "-2"]
    for stack, series in zip(stacks, (one, other), strict=True):
        assert any("one of several volumes" in note for note in stack.notes)
        values, geometry, _ = read_volume([Path(file) for file in stack.files])
        assert largest_error_mm(values, geometry.affine, series.truth()) < EXACT_MM


def test_two_series_in_one_folder_are_two_volumes(tmp_path: Path) -> None:
    one, other = make_series(), make_series(orientation=OBLIQUE, first_number=8)
    for item in other.slices:
        item.SeriesInstanceUID = generate_uid(entropy_srcs=["other series"])
    Series(one.slices + other.slices).write(tmp_path)
    assert refusal_of(tmp_path) == "several-volumes"
    assert [stack.usable for stack in stacks_in(tmp_path)] == [True, True]


def test_two_orientations_in_one_series_are_two_volumes(tmp_path: Path) -> None:
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    one, other = make_series(), make_series(orientation=coronal, first_number=8)
    Series(one.slices + other.slices).write(tmp_path)
    assert [(len(stack.headers), stack.usable) for stack in stacks_in(tmp_path)] == [(8, True), (8, True)]


def test_the_message_about_several_volumes_names_no_patient(tmp_path: Path) -> None:
    one, other = _two_volumes(_echo)
    Series(one.slices + other.slices).write(tmp_path)
    with pytest.raises(Refusal, match="series-") as caught:
        read_volume(tmp_path)
    assert "Phantom" not in str(caught.value)
    assert "synthetic-1" not in str(caught.value)


# --- refused ------------------------------------------------------------------------------------------------------


def _at(*distances: float) -> Callable[[], Series]:
    return lambda: make_series(distances)


def _spacing_of_one(item: Dataset, number: int) -> None:
    item.PixelSpacing = [1.6, 1.4] if number == 3 else item.PixelSpacing


def _size_of_one(item: Dataset, number: int) -> None:
    if number == 3:
        set_pixels(item, encoded(number, ROWS - 2, COLUMNS))


def _last_of_another_size(item: Dataset, number: int) -> None:
    if number == 7:
        set_pixels(item, encoded(number, ROWS, COLUMNS - 2))


def _orientation_of_one(item: Dataset, number: int) -> None:
    if number == 3:
        turn = np.radians(5)
        item.ImageOrientationPatient = [1, 0, 0, 0, round(float(np.cos(turn)), 9), round(float(np.sin(turn)), 9)]


def _no_position(item: Dataset, number: int) -> None:
    del item.ImagePositionPatient


def _no_orientation(item: Dataset, number: int) -> None:
    del item.ImageOrientationPatient


def _no_spacing(item: Dataset, number: int) -> None:
    del item.PixelSpacing


def _orientation_of_zeros(item: Dataset, number: int) -> None:
    item.ImageOrientationPatient = [0, 0, 0, 0, 0, 0]


def _two_patients(item: Dataset, number: int) -> None:
    item.PatientID = "synthetic-1" if number < 4 else "synthetic-2"


def _two_names_without_id(item: Dataset, number: int) -> None:
    item.PatientName, item.PatientID = "Phantom^One" if number < 4 else "Phantom^Two", ""


def _two_names_some_without_id(item: Dataset, number: int) -> None:
    item.PatientName = "Phantom^One" if number < 4 else "Phantom^Two"
    item.PatientID = "synthetic-1" if number < 4 else ""


def _mosaic(item: Dataset, number: int) -> None:
    item.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def _colour(item: Dataset, number: int) -> None:
    set_pixels(item, np.zeros((ROWS, COLUMNS * 3), np.uint8))
    item.Columns, item.SamplesPerPixel, item.PhotometricInterpretation = COLUMNS, 3, "RGB"
    item.PlanarConfiguration = 0


def _palette(item: Dataset, number: int) -> None:
    item.PhotometricInterpretation = "PALETTE COLOR"


def _short_pixels(item: Dataset, number: int) -> None:
    item.PixelData = item.PixelData[:100] if number == 4 else item.PixelData


def _no_pixels(item: Dataset, number: int) -> None:
    del item.PixelData


def _absurd_size(item: Dataset, number: int) -> None:
    item.Rows, item.Columns = 65535, 65535


def _float_pixels(item: Dataset, number: int) -> None:
    del item.PixelData
    item.FloatPixelData = bytes(PIXELS * 4)
    item.BitsAllocated = 32


def _odd_high_bit(item: Dataset, number: int) -> None:
    item.BitsStored, item.HighBit = 12, 15


def _zero_slope(item: Dataset, number: int) -> None:
    item.RescaleSlope, item.RescaleIntercept = "0", "0"


def _overflow(item: Dataset, number: int) -> None:
    item.RescaleSlope, item.RescaleIntercept = "1e38", "0"


REFUSED: dict[str, tuple[Callable[[], Series], str]] = {
    "one slice missing": (_at(0, 2.5, 5, 10, 12.5, 15), "missing-slices"),
    "two gaps": (_at(0, 2.5, 5, 10, 12.5, 17.5, 20), "missing-slices"),
    "two slices missing in a row": (_at(0, 2.5, 5, 12.5, 15, 17.5), "missing-slices"),
    "3 then 6 mm": (_at(0, 3, 6, 9, 15, 21, 27), "non-uniform-spacing"),
    "3 then 4 mm": (_at(0, 3, 6, 9, 13, 17, 21), "non-uniform-spacing"),
    "one slice a little off": (_at(0, 2.5, 5, 7.6, 10, 12.5), "non-uniform-spacing"),
    "one slice": (_at(0), "single-slice"),
    "two slices that contradict their thickness": (_at(0, 5), "not-3d"),
    "pixel spacing of one slice": (lambda: make_series(change=_spacing_of_one), "mixed-grid"),
    "size of one slice": (lambda: make_series(change=_size_of_one), "mixed-grid"),
    "size of the last slice": (lambda: make_series(change=_last_of_another_size), "mixed-grid"),
    "orientation of one slice": (lambda: make_series(change=_orientation_of_one), "mixed-orientation"),
    "no position": (lambda: make_series(change=_no_position), "no-geometry"),
    "no orientation": (lambda: make_series(change=_no_orientation), "no-geometry"),
    "no pixel spacing": (lambda: make_series(change=_no_spacing), "no-geometry"),
    "orientation of zeros": (lambda: make_series(change=_orientation_of_zeros), "no-geometry"),
    "slices along themselves": (lambda: make_series(tilt_degrees=70), "no-geometry"),
    "two patient ids": (lambda: make_series(change=_two_patients), "mixed-patients"),
    "two patient names without an id": (lambda: make_series(change=_two_names_without_id), "mixed-patients"),
    "two patient names, some without an id": (lambda: make_series(change=_two_names_some_without_id), "mixed-patients"),
    "mosaic": (lambda: make_series(change=_mosaic), "mosaic"),
    "colour": (lambda: make_series(change=_colour), "colour"),
    "palette": (lambda: make_series(change=_palette), "colour"),
    "short pixel data": (lambda: make_series(change=_short_pixels), "truncated"),
    "no pixel data": (lambda: make_series(change=_no_pixels), "no-pixel-data"),
    "absurd size": (lambda: make_series(change=_absurd_size), "too-large"),
    "float pixels": (lambda: make_series(change=_float_pixels), "undecodable"),
    "odd high bit": (lambda: make_series(change=_odd_high_bit), "undecodable"),
    "slope of zero": (lambda: make_series(change=_zero_slope), "undecodable"),
    "values overflow": (lambda: make_series(change=_overflow), "non-finite"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_sound_geometry_is_refused_with_its_reason(
    tmp_path: Path, make: Callable[[], Series], reason: str
) -> None:
    assert refusal_of(make().write(tmp_path)) == reason


def test_two_images_at_one_place_are_refused_if_nothing_tells_them_apart(tmp_path: Path) -> None:
    series = make_series()
    extra = slice_at(series.slices[2].ImagePositionPatient, 30)
    Series([*series.slices, extra]).write(tmp_path)
    assert refusal_of(tmp_path) == "duplicate-slices"


def test_two_images_under_one_instance_uid_are_refused(tmp_path: Path) -> None:
    series = make_series()
    series.slices[5].SOPInstanceUID = series.slices[4].SOPInstanceUID
    assert refusal_of(series.write(tmp_path)) == "duplicate-slices"


@pytest.mark.parametrize("length", [200, 450, 700, 1000])
def test_a_file_cut_off_in_its_header_makes_the_series_truncated(tmp_path: Path, length: int) -> None:
    folder = make_series().write(tmp_path)
    victim = folder / "image-003.dcm"
    victim.write_bytes(victim.read_bytes()[:length])
    assert refusal_of(folder) == "truncated"


def test_a_file_cut_off_in_its_pixels_makes_the_series_truncated(tmp_path: Path) -> None:
    folder = make_series().write(tmp_path)
    victim = folder / "image-003.dcm"
    victim.write_bytes(victim.read_bytes()[:-50])
    assert refusal_of(folder) == "truncated"


def test_sources_that_hold_no_image(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    os.mkfifo(tmp_path / "pipe")
    assert refusal_of(tmp_path) == "not-an-image"
    assert refusal_of(tmp_path / "notes.txt") == "unreadable"
    assert refusal_of(tmp_path / "pipe") == "unreadable"
    with pytest.raises(UsageError, match="does not exist"):
        read_volume(tmp_path / "absent")
    with pytest.raises(UsageError, match="no files"):
        read_volume([])


# --- enhanced multi-frame -----------------------------------------------------------------------------------------


def _highdicom_volume(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import highdicom

    volume = highdicom.imread(str(path)).get_volume()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    return volume.array, affine


@pytest.mark.parametrize("order", [None, (3, 0, 7, 5, 1, 6, 2, 4)], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_enhanced_frames_are_where_their_headers_say(
    tmp_path: Path, orientation: Sequence[float], order: Sequence[int] | None
) -> None:
    series = make_series(orientation=orientation)
    path = save(enhanced(series, order=order), tmp_path / "enhanced.dcm")
    values, geometry, _ = read_volume(path)
    assert largest_error_mm(values, geometry.affine, series.truth()) < EXACT_MM
    array, affine = _highdicom_volume(path)  # axes (slice, row, column)
    assert largest_error_mm(array, affine, series.truth()) < EXACT_MM
    np.testing.assert_array_equal(np.unique(values), np.unique(array))


def test_a_missing_frame_is_refused(tmp_path: Path) -> None:
    order = (0, 1, 2, 4, 5, 6, 7)
    save(enhanced(make_series(), order=order), tmp_path / "enhanced.dcm")
    assert refusal_of(tmp_path) == "missing-slices"


def test_fewer_functional_groups_than_frames_are_refused(tmp_path: Path) -> None:
    item = enhanced(make_series())
    del item.PerFrameFunctionalGroupsSequence[-1]
    save(item, tmp_path / "enhanced.dcm")
    assert refusal_of(tmp_path) == "missing-slices"


def test_frames_of_two_time_points_are_two_volumes(tmp_path: Path) -> None:
    series = make_series()
    item = enhanced(series, order=[*range(8), *range(8)])
    for number, group in enumerate(item.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].TemporalPositionIndex = number // 8 + 1
    path = save(item, tmp_path / "enhanced.dcm")
    assert refusal_of(path) == "several-volumes"
    stacks = stacks_in(tmp_path)
    assert [(stack.usable, stack.suffix) for stack in stacks] == [(True, ""), (True, "-2")]


def test_pixels_shorter_than_the_declared_frames_are_refused(tmp_path: Path) -> None:
    item = enhanced(make_series())
    item.PixelData = item.PixelData[:-PIXELS]
    save(item, tmp_path / "enhanced.dcm")
    assert refusal_of(tmp_path) == "truncated"
