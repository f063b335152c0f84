"""What the text headers of MetaImage and NRRD files have in common: lines, fields, numbers, units.

ITK fills what such a header leaves out with an identity, and passes over units and intensity functions; here what is
absent is ``no-geometry``, and what is there is applied or refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.ingest.dicom_elements import MAX_HEADER_BYTES, open_file

_FIRST_READ: Final = 64 * 1024
_LENGTHS: Final = {
    ("nm", "nanometer", "nanometre"): 1e-6,
    ("um", "µm", "micron", "micrometer", "micrometre"): 1e-3,
    ("mm", "millimeter", "millimetre"): 1.0,
    ("cm", "centimeter", "centimetre"): 10.0,
    ("dm", "decimeter", "decimetre"): 100.0,
    ("m", "meter", "metre"): 1000.0,
    ("in", "inch"): 25.4,
}
_MM_PER_UNIT: Final = {
    **{spelling: mm for names, mm in _LENGTHS.items() for name in names for spelling in (name, f"{name}s")},
    "inches": 25.4,
}
UNDECLARED: Final = ("", "?", "???", "unknown", "none")


class Fields:
    """Fields of a header by name, upper and lower case and blanks apart; two that contradict each other are refused."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(_plain(name), []).append(value.strip())

    def get(self, *names: str) -> str:
        """The value under any of some names of one meaning; empty if there is none, ``unreadable`` if two differ."""
        found = [value for name in names for value in self._values.get(_plain(name), ())]
        for other in found[1:]:
            if not _same(found[0], other):
                message = f"the header gives {names[0]} as {found[0]!r} and as {other!r}; correct it at its source"
                raise Refusal("unreadable", message)
        return found[0] if found else ""

    def number(self, name: str, absent: int) -> int:
        """A whole number; ``unreadable`` if something else stands there."""
        text = self.get(name)
        try:
            return int(text) if text else absent
        except ValueError as error:
            raise Refusal("unreadable", f"{name} is {text!r}, expected a whole number; write the file again") from error

    def finite(self, name: str, absent: float) -> float:
        """A number that changes values; ``undecodable`` if it is none, or not finite."""
        text = self.get(name)
        value = to_number(text) if text else absent
        if not math.isfinite(value):
            raise Refusal("undecodable", f"{name} is {text!r}, expected a number; correct the header at its source")
        return value


def read_header_bytes(path: str | os.PathLike[str], end: re.Pattern[bytes]) -> tuple[bytes, re.Match[bytes] | None]:
    """The begin of a file up to and with the first match of ``end``, or all that was searched, and the match.

    The search ends at a zero byte, which no text holds, at the end of the file, or at the limit of headers.
    """
    begin, aim = b"", _FIRST_READ
    with open_file(path) as handle:
        while True:
            part = handle.read(aim - len(begin))
            begin += part
            match = end.search(begin)
            complete = match is not None and match.end() < len(begin)
            if complete or not part or b"\0" in part or len(begin) >= MAX_HEADER_BYTES:
                return begin, match
            if len(begin) == aim:
                aim = min(2 * aim, MAX_HEADER_BYTES)


def header_lines(header: bytes) -> list[str]:
    """Lines that end in a line feed, with or without carriage return; in UTF-8, or Latin-1 where they are not."""
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        text = header.decode("latin-1")
    return [line.removesuffix("\r") for line in text.split("\n")]  # splitlines() knows ten more ends of a line


def header_shape(text: str, declared_axes: str) -> tuple[int, int, int]:
    """The sizes, which must be three (``not-3d``) and possible (``unreadable``)."""
    try:
        sizes = [int(part) for part in text.split()]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise Refusal("unreadable", f"impossible sizes {text!r} in the header; write the file again from its source")
    if len(sizes) != 3:
        raise Refusal("not-3d", f"the file has {len(sizes)} axes, expected 3; give one 3D volume")
    if declared_axes not in ("", "3"):
        raise Refusal("unreadable", f"the header declares {declared_axes!r} axes and sizes {text!r}; write it again")
    return sizes[0], sizes[1], sizes[2]


def vector(text: str, count: int, name: str) -> NDArray[np.float64]:
    """So many finite numbers, or ``no-geometry``."""
    try:
        found = np.array([float(part) for part in text.split()])
    except ValueError:
        found = np.empty(0)
    if found.size != count or not np.isfinite(found).all():
        raise Refusal("no-geometry", f"{name} is absent or not {count} numbers (found {text!r}); set it in the header")
    return found


def to_mm(units: Sequence[str], name: str, notes: list[str]) -> NDArray[np.float64]:
    """Millimetres per unit along each axis of space; nothing declared is mm, and noted where the field is there.

    If a unit is no length, or only some are declared, the file has ``no-geometry``.
    """
    plain = [unit.strip().lower().replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}") for unit in units]
    shown = ", ".join(dict.fromkeys(unit.strip() or "nothing" for unit in units))
    if all(unit in UNDECLARED for unit in plain):
        notes.append(f"{name} does not say which unit; taken as mm")
        return np.ones(len(units))
    unknown = [unit for unit in plain if unit not in _MM_PER_UNIT]
    if unknown:
        raise Refusal("no-geometry", f"{name} is {shown}, expected a unit of length such as mm; set it in the header")
    factors = np.array([_MM_PER_UNIT[unit] for unit in plain])
    if (factors != 1).any():
        notes.append(f"{name} is {shown}, converted to mm")
    return factors


def to_number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _plain(name: str) -> str:
    return "".join(name.split()).lower()


def _same(one: str, other: str) -> bool:
    if one.split() == other.split():
        return True
    try:
        return [float(part) for part in one.split()] == [float(part) for part in other.split()]
    except ValueError:
        return False
