"""The factor to SUV: right, or none with what is missing; never a crash, never one from what cannot be believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import PositronEmissionTomographyImageStorage

from medseg.ingest import read_volume
from tests.ingest.synthetic import make_series
from tests.ingest.verdicts import raw_value

HALF_LIFE_S, DOSE_BQ, WEIGHT_KG = 6586.2, 370e6, 70.0
Change = Callable[[Dataset, Dataset], None]


def _factor(hours: float) -> float:
    return WEIGHT_KG * 1000 / (DOSE_BQ * 2.0 ** (-hours * 3600 / HALF_LIFE_S))


def _pet(folder: Path, change: Change | None = None) -> Path:
    def mark(item: Dataset, _: int) -> None:
        item.SOPClassUID, item.Modality = PositronEmissionTomographyImageStorage, "PT"
        item.RescaleSlope, item.RescaleIntercept, item.Units, item.DecayCorrection = "0.5", "0", "BQML", "START"
        item.SeriesDate = item.AcquisitionDate = "20200101"
        item.SeriesTime, item.AcquisitionTime, item.PatientWeight = "101000", "101000", "70"
        tracer = Dataset()
        tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "370000000", "6586.2"
        tracer.RadiopharmaceuticalStartTime = "091000"
        item.RadiopharmaceuticalInformationSequence = DicomSequence([tracer])
        if change is not None:
            change(item, tracer)

    return make_series((0, 2.5, 5), change=mark).write(folder)


def _facts(folder: Path) -> dict[str, Any]:
    return dict(read_volume(folder)[2]["pet"])


def _item(**values: Any) -> Change:
    return lambda item, _: item.update(values)


def _tracer(**values: Any) -> Change:
    return lambda _, tracer: tracer.update(values)


def _both(*changes: Change) -> Change:
    def change(item: Dataset, tracer: Dataset) -> None:
        for one in changes:
            one(item, tracer)

    return change


def _without(*names: str) -> Change:
    def change(item: Dataset, tracer: Dataset) -> None:
        for name in names:
            for holder in (item, tracer):
                if name in holder:
                    delattr(holder, name)

    return change


KNOWN: dict[str, tuple[Change | None, float]] = {
    "times of one day": (None, 1),
    "fractions of seconds": (_item(SeriesTime="101000.000000", AcquisitionTime="101000.50"), 1),
    "date and time of the injection": (_tracer(RadiopharmaceuticalStartDateTime="20200101091000.00"), 1),
    "date and time only": (
        _both(_without("RadiopharmaceuticalStartTime"), _tracer(RadiopharmaceuticalStartDateTime="20200101081000")),
        2,
    ),
    "over midnight by date": (
        _both(
            _item(SeriesTime="003000", AcquisitionTime="003100"),
            _tracer(RadiopharmaceuticalStartDateTime="20191231233000", RadiopharmaceuticalStartTime="233000"),
        ),
        1,
    ),
    "over midnight by time": (
        _both(_item(SeriesTime="003000", AcquisitionTime="003100"), _tracer(RadiopharmaceuticalStartTime="233000")),
        1,
    ),
    "a scan over midnight": (
        _both(
            _item(SeriesTime="235500", AcquisitionTime="000500", AcquisitionDate="20200102"),
            _tracer(RadiopharmaceuticalStartTime="225500"),
        ),
        1,
    ),
    "no dates at all": (_without("SeriesDate", "AcquisitionDate"), 1),
    "a longer way on the day": (_tracer(RadiopharmaceuticalStartTime="0510"), 5),
    "corrected to the injection": (_item(DecayCorrection="ADMIN"), 0),
}


@pytest.mark.parametrize(("change", "hours"), KNOWN.values(), ids=KNOWN.keys())
def test_the_factor_counts_from_the_injection_to_the_scan(tmp_path: Path, change: Change | None, hours: float) -> None:
    facts = _facts(_pet(tmp_path, change))
    assert facts["suv_missing"] == ""
    assert facts["suv_bw_factor"] == pytest.approx(_factor(hours), rel=1e-4)


UNKNOWN: dict[str, tuple[Change, str]] = {
    "injection two days before": (_tracer(RadiopharmaceuticalStartDateTime="20191230091000"), "49.0 h"),
    "injection after the scan": (_tracer(RadiopharmaceuticalStartDateTime="20200102091000"), "-23.0 h"),
    "time of the day after": (_tracer(RadiopharmaceuticalStartTime="111000"), "23.0 h"),
    "two injection times": (_tracer(RadiopharmaceuticalStartDateTime="20200101071000"), "contradict"),
    "a time zone of its own": (_tracer(RadiopharmaceuticalStartDateTime="20200101091000+0100"), "time zone"),
    "injection dated, scan not": (
        _both(_without("SeriesDate", "AcquisitionDate"), _tracer(RadiopharmaceuticalStartDateTime="20200101091000")),
        "date of the scan",
    ),
    "no time of injection": (_without("RadiopharmaceuticalStartTime"), "time of the injection"),
    "no SeriesTime": (_without("SeriesTime"), "SeriesTime"),
    "no AcquisitionTime": (_without("AcquisitionTime"), "AcquisitionTime"),
    "reconstructed later": (_item(SeriesTime="140000"), "later than AcquisitionTime"),
    "dose in MBq": (_tracer(RadionuclideTotalDose="370"), "cannot be Bq"),
    "dose in kBq": (_tracer(RadionuclideTotalDose="370000"), "cannot be Bq"),
    "a large dose in kBq": (_tracer(RadionuclideTotalDose="2200000"), "cannot be Bq"),
    "no dose": (_without("RadionuclideTotalDose"), "RadionuclideTotalDose is absent"),
    "dose 0": (_tracer(RadionuclideTotalDose="0"), "cannot be Bq"),
    "half-life in minutes": (_tracer(RadionuclideHalfLife="109.77"), "no PET nuclide"),
    "no half-life": (_without("RadionuclideHalfLife"), "RadionuclideHalfLife is absent"),
    "weight in grams": (_item(PatientWeight="70000"), "cannot be kg"),
    "weight 0": (_item(PatientWeight="0"), "cannot be kg"),
    "no weight": (_without("PatientWeight"), "PatientWeight is absent"),
    "no correction": (_item(DecayCorrection="NONE"), "NONE"),
    "correction absent": (_without("DecayCorrection"), "absent"),
    "counts": (_item(Units="CNTS"), "CNTS"),
    "lean body mass": (_item(Units="GML", SUVType="LBM"), "LBM"),
    "no tracer": (_without("RadiopharmaceuticalInformationSequence"), "radiopharmaceutical"),
    "two tracers": (
        lambda item, tracer: item.RadiopharmaceuticalInformationSequence.append(tracer),
        "several",
    ),
    "no rescale": (_without("RescaleSlope", "RescaleIntercept"), "RescaleSlope"),
}


@pytest.mark.parametrize(("change", "says"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_there_is_no_factor_where_the_header_proves_none(tmp_path: Path, change: Change, says: str) -> None:
    facts = _facts(_pet(tmp_path, change))
    assert facts["suv_bw_factor"] is None
    assert says in facts["suv_missing"]


def test_values_in_suv_have_a_factor_of_one(tmp_path: Path) -> None:
    assert _facts(_pet(tmp_path, _item(Units="GML")))["suv_bw_factor"] == 1.0


@pytest.mark.parametrize(
    ("tag", "value", "hours"),
    [
        ((0x0008, 0x0031), b"10:10:00", 1),
        ((0x0008, 0x0021), b"2020.01.01", 1),
        ((0x0008, 0x0031), b"ten", None),
        ((0x0008, 0x0021), b"20201399", None),
        ((0x0010, 0x1030), b"70,5", None),
        ((0x0010, 0x1030), b"heavy", None),
        ((0x0018, 0x1074), b"370 MBq", None),
        ((0x0018, 0x1072), b"09:10:00", 1),
        ((0x0018, 0x1072), b"", None),
    ],
)
def test_odd_texts_in_the_header_do_not_stop_the_volume(
    tmp_path: Path, tag: tuple[int, int], value: bytes, hours: float | None
) -> None:
    for path in _pet(tmp_path).iterdir():
        _widened(path, tag, value)
    facts = _facts(tmp_path)
    if hours is None:
        assert facts["suv_bw_factor"] is None
        assert facts["suv_missing"]
    else:
        assert facts["suv_bw_factor"] == pytest.approx(_factor(hours))


def _widened(path: Path, tag: tuple[int, int], value: bytes) -> None:
    """Values within the sequence keep their length, so that its own stays right."""
    data = path.read_bytes()
    if tag[0] != 0x0018:
        raw_value(path, tag, value)
        return
    at = data.index(tag[0].to_bytes(2, "little") + tag[1].to_bytes(2, "little"), 132)
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    grown = len(value) + len(value) % 2 - length
    new = data[: at + 6] + (length + grown).to_bytes(2, "little") + value + b" " * (len(value) % 2)
    data = new + data[at + 8 + length :]
    for mark in (b"\x54\0\x16\0SQ\0\0", b"\xfe\xff\0\xe0"):
        place = data.index(mark, 132) + len(mark)
        old = int.from_bytes(data[place : place + 4], "little")
        if old != 0xFFFFFFFF:
            data = data[:place] + (old + grown).to_bytes(4, "little") + data[place + 4 :]
    path.write_bytes(data)


def test_files_without_preamble_have_pet_facts(tmp_path: Path) -> None:
    for path in _pet(tmp_path).iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert _facts(tmp_path)["suv_bw_factor"] == pytest.approx(_factor(1))
