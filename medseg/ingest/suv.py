"""What a PET header says about how its values become standardised uptake values (SUV).

SUV by body weight, after the Quantitative Imaging Biomarkers Alliance's FDG-PET profile:
SUV = activity concentration [Bq/ml] × body weight [g] / injected dose [Bq], the dose decayed to the start of the scan.
The factor is reported, never applied: whether to use it is the user's decision. Where the header does not prove it,
there is none, and ``suv_missing`` says why. Dates and times are read in the forms of older standards, too (PS3.5
section 6.2: DA, TM, DT).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from medseg.ingest.dicom_elements import open_file
from medseg.ingest.dicom_tags import numbers_of
from medseg.ingest.multiframe import raw_text

_LONGEST_UPTAKE: Final = timedelta(hours=12)
"""Where only times of day are known: a later scan could as well be on another day."""
_MOST_HALF_LIVES: Final = 10
_NO_DAY: Final = datetime(1, 1, 1)
_FIRST_DAY: Final = datetime(1900, 1, 1)
_WEIGHTS_KG: Final = (0.01, 500.0)
_DOSES_BQ: Final = (1e6, 1e11)
_LEAST_DOSE_BQ_PER_KG: Final = 5e4
"""Doses of some MBq per kg are usual, and 0.3 MBq per kg the least published: less is kBq or MBq."""
_NUCLIDES: Final = """
    Rb-82 76.4, O-15 122.2, Cu-62 580.2, N-13 597.9, C-11 1221.8, Cu-60 1422, Tc-94m 3120, Ga-68 4062.6, F-18 6586.2,
    Ti-45 11088, Cu-61 12009, Sc-44 14292, Ga-66 34164, Cu-64 45722, Y-86 53064, Br-76 58320, Co-55 63108, Y-90 230500,
    Zr-89 282280, I-124 360806, Mn-52 483062"""
_HALF_LIVES_S: Final = tuple(float(entry.split()[1]) for entry in _NUCLIDES.split(","))
_HALF_LIFE_TOLERANCE: Final = 0.03


class _MissingError(Exception):
    """What the header lacks, or says in a way that cannot be believed."""


@dataclass(frozen=True)
class _Text:
    """Values of a data set as text."""

    dataset: Any

    def __call__(self, keyword: str) -> str:
        return raw_text(self.dataset, keyword)

    def number(self, keyword: str, limits: tuple[float, float], unit: str) -> float:
        text = self(keyword)
        found = numbers_of(text) if text else None
        if found is None or len(found) != 1:
            raise _MissingError(f"{keyword} is {'no number' if text else 'absent'}")
        if not limits[0] <= found[0] <= limits[1]:
            raise _MissingError(f"{keyword} is {found[0]:g}, which cannot be {unit}")
        return found[0]


def suv_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a PET file says of its units, and the factor from stored units to SUV by body weight, if it can be known.

    The keys: ``units`` (such as ``"BQML"`` or ``"GML"``), ``decay_correction``, ``corrections``, ``suv_bw_factor``
    (``None`` where it cannot be known), ``suv_missing`` (what the header lacks for it).
    """
    from pydicom import dcmread

    with open_file(path) as handle:
        # Files without preamble are read as well: they were recognised by their content.
        dataset = dcmread(io.BytesIO(handle.read()), stop_before_pixels=True, force=True)
    text = _Text(dataset)
    factor, missing = None, ""
    try:
        tracers = dataset.get("RadiopharmaceuticalInformationSequence") or ()
        factor = _factor(text, [_Text(tracer) for tracer in tracers])
    except _MissingError as error:
        missing = str(error)
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds for a damaged sequence; the volume stays readable
        missing = f"the radiopharmaceutical cannot be read ({type(error).__name__})"
    return {
        "units": text("Units"),
        "decay_correction": text("DecayCorrection"),
        "corrections": tuple(part.strip() for part in text("CorrectedImage").split("\\") if part.strip()),
        "suv_bw_factor": factor,
        "suv_missing": missing,
    }


def _factor(text: _Text, tracers: Sequence[_Text]) -> float:
    units = text("Units")
    if not text("RescaleSlope"):
        raise _MissingError("there is no RescaleSlope, so that the values are in no unit")
    if units == "GML":
        kind = text("SUVType") or "BW"  # PS3.3 C.8.9.1: by body weight where nothing is said
        if kind != "BW":
            raise _MissingError(f"SUVType is {kind[:16]}, expected BW")
        return 1.0
    if units != "BQML":
        raise _MissingError(f"units are {units or 'absent'}, expected BQML or GML")
    if len(tracers) != 1:  # each has a dose of its own
        raise _MissingError("the radiopharmaceutical is absent, or there are several")
    (tracer,) = tracers
    weight_kg = text.number("PatientWeight", _WEIGHTS_KG, "kg")
    dose_bq = tracer.number("RadionuclideTotalDose", _DOSES_BQ, "Bq")
    if dose_bq < _LEAST_DOSE_BQ_PER_KG * weight_kg:
        raise _MissingError(f"RadionuclideTotalDose is {dose_bq:g} for {weight_kg:g} kg, which cannot be Bq")
    correction = text("DecayCorrection")
    if correction == "ADMIN":
        return weight_kg * 1000 / dose_bq
    if correction != "START":
        raise _MissingError(f"DecayCorrection is {correction or 'absent'}, expected START or ADMIN")
    half_life_s = _half_life_s(tracer)
    uptake_s = _uptake(text, tracer, half_life_s).total_seconds()
    return weight_kg * 1000 / (dose_bq * 2.0 ** (-uptake_s / half_life_s))


def _half_life_s(tracer: _Text) -> float:
    """A half-life in seconds: one in minutes or hours is that of no nuclide."""
    found = tracer.number("RadionuclideHalfLife", (60.0, 1e6), "the seconds of a PET nuclide")
    if not any(abs(found / known - 1) <= _HALF_LIFE_TOLERANCE for known in _HALF_LIVES_S):
        raise _MissingError(f"RadionuclideHalfLife is {found:g}, that of no PET nuclide in seconds")
    return found


def _uptake(text: _Text, tracer: _Text, half_life_s: float) -> timedelta:
    """From injection to the start of the scan, to which the values are corrected."""
    started = _started(text)
    stated = tracer("RadiopharmaceuticalStartDateTime")
    clock = time_of(tracer("RadiopharmaceuticalStartTime"))
    if stated:
        injected = moment_of(stated)
        if injected is None:
            raise _MissingError("RadiopharmaceuticalStartDateTime is no date and time, or in a time zone of its own")
        if started < _FIRST_DAY:
            raise _MissingError("the date of the scan is absent")
        if clock is not None and abs(_of_day(injected) - clock) > timedelta(minutes=1):
            raise _MissingError("RadiopharmaceuticalStartDateTime and RadiopharmaceuticalStartTime contradict")
        uptake, longest = started - injected, timedelta(seconds=_MOST_HALF_LIVES * half_life_s)
    elif clock is not None:
        # Without a date the injection was on the day of the scan, or late on the evening before.
        uptake, longest = (_of_day(started) - clock) % timedelta(days=1), _LONGEST_UPTAKE
    else:
        raise _MissingError("the time of the injection is absent or no time")
    if not timedelta(0) <= uptake <= longest:
        raise _MissingError(f"the scan began {uptake / timedelta(hours=1):.1f} h after the injection, which cannot be")
    return uptake


def _started(text: _Text) -> datetime:
    """When the scan began: SeriesTime, unless it is later than the acquisition, as that of a reconstruction is."""
    series = _moment(text, "Series")
    if series > _moment(text, "Acquisition"):
        raise _MissingError("SeriesTime is later than AcquisitionTime: it is not that of the scan")
    return series


def _moment(text: _Text, which: str) -> datetime:
    """Date and time; on a day of long ago where the header has no dates at all, as some de-identified ones."""
    stated = text(f"{which}Date") or text("SeriesDate") or text("AcquisitionDate")
    day, clock = date_of(stated) if stated else _NO_DAY, time_of(text(f"{which}Time"))
    if clock is None or day is None:
        raise _MissingError(f"{which}Time is absent, or it or its date cannot be read")
    return day + clock


def _of_day(moment: datetime) -> timedelta:
    return moment - moment.replace(hour=0, minute=0, second=0, microsecond=0)


_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_TIME: Final = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(\.\d{1,6})?)?)?")
_MOMENT: Final = re.compile(r"(\d{8})(\d{2,6}(?:\.\d{1,6})?)([+-]\d{4})?")


def date_of(text: str) -> datetime | None:
    """Midnight of a date, also written ``2020.01.01`` as before 1993; ``None`` if it is none."""
    found = _DATE.fullmatch(text.strip())
    try:
        return None if found is None else datetime(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        return None


def time_of(text: str) -> timedelta | None:
    """The time of a day, also written ``10:10:00`` as before 1993; ``None`` if it is none."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[:3])
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return timedelta(hours=hours, minutes=minutes, seconds=seconds + float(found[4] or 0))


def moment_of(text: str) -> datetime | None:
    """Date and time in one, at least to the hour; ``None`` if it is none, or in a time zone of its own."""
    found = _MOMENT.fullmatch(text.strip())
    if found is None or found[3]:
        return None
    day, clock = date_of(found[1]), time_of(found[2])
    return None if day is None or clock is None else day + clock
