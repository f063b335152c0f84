"""Whether the slices of one stack show one contrast: two echoes or kernels that fill one another's gaps are no volume.

Only what a scanner keeps constant over a volume is compared. Times of day, acquisition numbers, frame times and tube
current differ between the slices of sound volumes and prove nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from medseg.ingest.headers import Header

__all__ = ["mixture_in"]

_TEXTS: Final = (
    *("image type", "image type (GE)", "image type (Philips)", "complex component", "echo number"),
    *("convolution kernel", "scanning sequence", "sequence name", "corrections", "units", "rescale type"),
    *("energy window",),
)
"""Any difference in these is another image; where one is absent, the slice says nothing."""

_TEXTS_OR_NONE: Final = ("contrast agent",)
"""Absent is a value of its own: before contrast."""

_NUMBERS: Final = {
    "echo time": (0.02, 0.02),
    "inversion time": (0.02, 1.0),
    "flip angle": (0.02, 0.5),
    "tube voltage": (0.02, 0.5),
    "trigger delay": (0.02, 1.0),
    "cardiac phase": (0.0, 0.5),
}
"""Largest fraction and largest absolute difference (ms, degrees, kV, percent) that rounding explains."""

_B_VALUES: Final = ("b-value", "b-value (Siemens)", "b-value (GE)", "b-value (Philips)", "b-value (UIH)")
_B_TOLERANCE: Final = (0.02, 5.0)
_GE_OFFSET: Final = 1e9
"""GE adds it to its private b-values."""

_DIRECTIONS: Final = ("gradient direction", "gradient direction (Siemens)")
_COSINE_TOLERANCE: Final = 0.02

_TIMINGS: Final = {
    "repetition time": (0.02, 1.0),
    "temporal position": (0.0, 0.5),
    "temporal position index": (0.0, 0.5),
}
"""Gated scans have a time of each slice; mixed volumes have a few times, each of several slices."""

_MOST_PHASES: Final = 3
_TRIGGER_TOLERANCE: Final = (0.02, 1.0)


def mixture_in(headers: Sequence[Header]) -> str:
    """By what the slices of one stack differ that one volume has in common; empty if they are alike.

    Parameters
    ----------
    headers
        The slices of one stack, each at a place of its own.

    Returns
    -------
    str
        Such as ``"echo time (10 in 3 slices, 90 in 3)"``.
    """
    checks: tuple[Callable[[Sequence[Header]], str], ...] = (
        _modalities,
        _texts,
        _numbers,
        _b_values,
        _directions,
        _timings,
        _triggers,
    )
    return next((found for check in checks if (found := check(headers))), "")


def _modalities(headers: Sequence[Header]) -> str:
    for name, values in (
        ("modality", [header.modality for header in headers]),
        ("photometric interpretation", [header.photometric for header in headers]),
    ):
        if len(set(values)) > 1:
            return _described(name, values)
    return ""


def _texts(headers: Sequence[Header]) -> str:
    for name in (*_TEXTS, *_TEXTS_OR_NONE):
        values = [header.facts.get(name, "") for header in headers]
        compared = set(values) if name in _TEXTS_OR_NONE else set(values) - {""}
        if len(compared) > 1:
            return _described(name, values)
    return ""


def _numbers(headers: Sequence[Header]) -> str:
    for name, tolerance in _NUMBERS.items():
        values = [_number(header.facts.get(name, "")) for header in headers]
        known = [value for value in values if value is not None]
        if len(_clusters(known, tolerance)) > 1:
            return _described(name, values)
    return ""


def _b_values(headers: Sequence[Header]) -> str:
    """A slice without a b-value has none: 0."""
    for name in _B_VALUES:
        values = [(_number(header.facts.get(name, "")) or 0.0) % _GE_OFFSET for header in headers]
        if len(_clusters(values, _B_TOLERANCE)) > 1:
            return _described(name, values)
    return ""


def _directions(headers: Sequence[Header]) -> str:
    for name in _DIRECTIONS:
        known = [value for header in headers if (value := header.facts.get(name, ""))]
        vectors = [[_number(part) or 0.0 for part in value.split("\\")] for value in known]
        if len({len(vector) for vector in vectors}) > 1 or (
            vectors and np.ptp(vectors, axis=0).max() > _COSINE_TOLERANCE
        ):
            return _described(name, known)
    return ""


def _timings(headers: Sequence[Header]) -> str:
    for name, tolerance in _TIMINGS.items():
        values = [_number(header.facts.get(name, "")) for header in headers]
        if 1 < _repeated(values, tolerance) <= max(2, len(headers) // 2):
            return _described(name, values)
    return ""


def _triggers(headers: Sequence[Header]) -> str:
    """Two or three trigger times of several slices each are phases; more are the order in which slices were acquired.

    Where a temporal position is given, it tells phases apart, and trigger times are those of the slices.
    """
    if any("temporal position" in header.facts or "temporal position index" in header.facts for header in headers):
        return ""
    values = [_number(header.facts.get("trigger time", "")) for header in headers]
    if 1 < _repeated(values, _TRIGGER_TOLERANCE) <= min(_MOST_PHASES, len(headers) // 2):
        return _described("trigger time", values)
    return ""


def _repeated(values: Sequence[float | None], tolerance: tuple[float, float]) -> int:
    """How many different values there are, exactly; 1 if rounding explains all differences."""
    known = [value for value in values if value is not None]
    return len(set(known)) if len(_clusters(known, tolerance)) > 1 else 1


def _number(text: str) -> float | None:
    try:
        return float(text.partition("\\")[0])
    except ValueError:
        return None


def _clusters(values: Sequence[float], tolerance: tuple[float, float]) -> list[float]:
    """The distinct values: each that is farther from the one before than rounding explains."""
    fraction, absolute = tolerance
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > max(absolute, fraction * abs(value)):
            found.append(value)
    return found


def _described(name: str, values: Sequence[float | str | None]) -> str:
    """The name with the most frequent values, so that the slices can be found."""
    counts = Counter("absent" if value in (None, "") else str(value) for value in _shown(values))
    shown = ", ".join(f"{value} in {count} slices" for value, count in counts.most_common(4))
    return f"{name} ({shown}{', …' if len(counts) > 4 else ''})"


def _shown(values: Sequence[float | str | None]) -> list[str | None]:
    return [f"{value:g}" if isinstance(value, float) else value for value in values]
