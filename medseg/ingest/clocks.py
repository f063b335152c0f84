"""Dates and times of DICOM headers (PS3.5 section 6.2: DA, TM, DT), also in the forms of older standards."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

__all__ = ["date_of", "moment_of", "time_of"]

_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_TIME: Final = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(\.\d{1,6})?)?)?")
_MOMENT: Final = re.compile(r"(\d{8})(\d{2,6}(?:\.\d{1,6})?)([+-]\d{4})?")


def date_of(text: str) -> datetime | None:
    """Midnight of a date, also written ``2020.01.01`` as before 1993; ``None`` if it is none."""
    found = _DATE.fullmatch(text.strip())
    try:
        return None if found is None else datetime(*(int(part) for part in found.groups()))
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
