"""Copies, concatenations and names: what belongs together is one volume, what does not is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from medseg.errors import Refusal
from medseg.ingest import read_volume
from tests.ingest.synthetic import Series, encoded, enhanced, enlarge, make_series, save, set_pixels
from tests.ingest.verdicts import USABLE, pixels_of, values_of, verdict

# --- one UID ------------------------------------------------------------------------------------------------------


def _other_rescale(item: Dataset) -> None:
    item.RescaleSlope, item.RescaleIntercept = "1", "-1000"


def _other_type(item: Dataset) -> None:
    item.ImageType = ["DERIVED", "SECONDARY", "OTHER"]


def _other_pixels(item: Dataset) -> None:
    set_pixels(item, encoded(3) + 1)


def _one_other_pixel(item: Dataset) -> None:
    pixels = encoded(3)
    pixels[9, 11] += 1
    set_pixels(item, pixels)


def _other_spacing(item: Dataset) -> None:
    item.PixelSpacing = [0.8, 0.8]


def _other_echo(item: Dataset) -> None:
    item.EchoTime = 90


def _other_sign(item: Dataset) -> None:
    item.PixelRepresentation, item.BitsStored, item.HighBit = 1, 9, 8  # 361 and more are negative then


@pytest.mark.parametrize(
    "change", [_other_rescale, _other_type, _other_pixels, _one_other_pixel, _other_spacing, _other_echo, _other_sign]
)
@pytest.mark.parametrize("name", ["a.dcm", "z.dcm"], ids=["first by path", "last by path"])
def test_two_images_under_one_uid_are_refused(tmp_path: Path, change: Callable[[Dataset], None], name: str) -> None:
    series = make_series()
    series.write(tmp_path)
    other = make_series().slices[3]
    change(other)
    save(other, tmp_path / name)
    assert verdict(tmp_path)[0] == "duplicate-slices"


def test_a_copy_in_another_syntax_is_a_copy(tmp_path: Path) -> None:
    series = make_series((0, 2.5, 5), change=enlarge)
    series.write(tmp_path)
    series.slices[1].compress(RLELossless, generate_instance_uid=False)
    save(series.slices[1], tmp_path / "again.dcm")
    found, notes = verdict(tmp_path)
    assert found == USABLE
    assert "1 second copies" in notes


# --- new UIDs -----------------------------------------------------------------------------------------------------


def _again(change: Callable[[Dataset, int], None] | None = None, which: Sequence[int] = range(8)) -> list[Dataset]:
    copies = [make_series().slices[k] for k in which]
    for number, item in enumerate(copies):
        item.SOPInstanceUID, item.InstanceNumber = generate_uid(), 100 + number
        if change is not None:
            change(item, number)
    return copies


def _later_content(item: Dataset, number: int) -> None:
    item.ContentTime = f"12{number:02d}00"


def _earlier_content(item: Dataset, number: int) -> None:
    item.ContentTime = f"12{7 - number:02d}30"


@pytest.mark.parametrize("which", [range(8), (3,), (0, 7)], ids=["all", "one", "both ends"])
@pytest.mark.parametrize("change", [None, _earlier_content], ids=["same times", "other times"])
def test_equal_images_under_new_uids_are_left_out_and_noted(
    tmp_path: Path, which: Sequence[int], change: Callable[[Dataset, int], None] | None
) -> None:
    series = make_series(change=_later_content if change else None)
    found, notes = verdict(Series(series.slices + _again(change, which)).write(tmp_path))
    assert found == USABLE
    assert f"{len(which)} copies of slices under other SOPInstanceUIDs" in notes
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))


def test_other_pixels_under_new_uids_are_refused(tmp_path: Path) -> None:
    def brighter(item: Dataset, number: int) -> None:
        if number == 2:
            set_pixels(item, encoded(2) + 1)

    code, message = verdict(Series(make_series().slices + _again(brighter)).write(tmp_path))
    assert code == "duplicate-slices"
    assert "1 of 9 slices" in message


def test_equal_slices_of_two_time_points_stay_two_volumes(tmp_path: Path) -> None:
    """Slices without signal are equal at all times."""

    def dark(item: Dataset, number: int) -> None:
        item.TemporalPositionIdentifier = 1 if item.InstanceNumber < 100 else 2
        if number in (0, 7):
            set_pixels(item, np.zeros((10, 12), np.uint16))

    one, other = make_series(change=dark), _again(dark)
    assert verdict(Series(one.slices + other).write(tmp_path))[0] == "several-volumes"


# --- concatenations -----------------------------------------------------------------------------------------------


def _parts(folder: Path, *, total: int | None = 3, offsets: bool = True, uid: str = "1.2.3.4.77") -> list[Path]:
    """Eight frames in three files."""
    series = make_series()
    paths = []
    for number, frames in enumerate((range(3), range(3, 6), range(6, 8)), start=1):
        item = enhanced(series, order=frames)
        item.SOPInstanceUID, item.InConcatenationNumber = generate_uid(entropy_srcs=[f"part-{number}"]), number
        if uid:
            item.ConcatenationUID = uid
        if total is not None:
            item.InConcatenationTotalNumber = total
        if offsets:
            item.ConcatenationFrameOffsetNumber = frames[0]
        paths.append(save(item, folder / f"part{number}.dcm"))
    return paths


@pytest.mark.parametrize("total", [3, None])
@pytest.mark.parametrize("offsets", [True, False])
def test_a_whole_concatenation_is_one_volume(tmp_path: Path, total: int | None, offsets: bool) -> None:
    _parts(tmp_path, total=total, offsets=offsets)
    found, notes = verdict(tmp_path)
    assert found == USABLE
    assert ("a later part may be missing" in notes) == (total is None)
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(make_series()))


@pytest.mark.parametrize("gone", [0, 1, 2, (1, 2)], ids=["first", "middle", "last", "all but the first"])
@pytest.mark.parametrize("uid", ["1.2.3.4.77", ""], ids=["named", "unnamed"])
def test_a_concatenation_that_lacks_a_part_is_refused(tmp_path: Path, gone: int | tuple[int, ...], uid: str) -> None:
    paths = _parts(tmp_path, uid=uid)
    for number in (gone,) if isinstance(gone, int) else gone:
        paths[number].unlink()
    code, message = verdict(tmp_path)
    assert code == "missing-slices"
    assert "concatenation" in message


@pytest.mark.parametrize("gone", [0, 1])
def test_a_part_before_others_is_missed_without_a_total(tmp_path: Path, gone: int) -> None:
    _parts(tmp_path, total=None)[gone].unlink()
    assert verdict(tmp_path)[0] == "missing-slices"


def test_a_last_part_that_nothing_proves_is_told(tmp_path: Path) -> None:
    _parts(tmp_path, total=None)[2].unlink()
    found, notes = verdict(tmp_path)
    assert found == USABLE
    assert "a later part may be missing" in notes


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", ["PHANTOM^ONE", "Phantom^One=人^虫", "Phantom One", "Phantom^One^^^", "Fantom^Won", ""]
)
def test_the_patient_id_decides_whatever_the_name(tmp_path: Path, other: str) -> None:
    def spelt(item: Dataset, number: int) -> None:
        if number > 3:
            item.SpecificCharacterSet, item.PatientName = "ISO_IR 192", other

    found, notes = verdict(make_series(change=spelt).write(tmp_path))
    assert found == USABLE
    assert "Phantom" not in notes
    assert "antom" not in notes


@pytest.mark.parametrize("ids", [("", ""), ("synthetic-1", "")])
def test_spellings_of_one_name_are_one_patient_where_ids_are_absent(tmp_path: Path, ids: tuple[str, str]) -> None:
    def spelt(item: Dataset, number: int) -> None:
        item.PatientID, item.PatientName = ids[number % 2], ("Phantom^One", "PHANTOM^ONE=人^虫")[number % 2]
        item.SpecificCharacterSet = "ISO_IR 192"

    assert verdict(make_series(change=spelt).write(tmp_path))[0] == USABLE


@pytest.mark.parametrize("ids", [("a", "b"), ("a", "b", "")])
def test_two_ids_under_one_name_are_two_patients(tmp_path: Path, ids: tuple[str, ...]) -> None:
    series = make_series(change=lambda item, number: setattr(item, "PatientID", ids[number % len(ids)]))
    with pytest.raises(Refusal) as caught:
        read_volume(series.write(tmp_path))
    assert caught.value.code == "mixed-patients"
