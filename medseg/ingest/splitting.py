"""What differs between the slices of one SeriesInstanceUID: several volumes to tell apart, or two contrasts in one.

Only what a scanner keeps constant over a volume is compared. Times of day, acquisition numbers, frame times and tube
current differ between the slices of sound volumes and prove nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.ingest.dicom_header import Header
from medseg.ingest.dicom_tags import SPLITTING_ATTRIBUTES

_TIMES = ("acquisition time", "content time")
_MOST_FACTS_TOGETHER = 3


SubStack = tuple[list[Header], str]
"""Some slices of a series, and by what they were told apart from the others."""


def separate_stacked(headers: Sequence[Header], places: NDArray[np.int64]) -> list[SubStack] | None:
    """Split sorted slices, of which several share a place (a number each), into parts that have one at each place.

    Of the splits that some attributes give, into parts of one contrast where there is one, and into the fewest parts;
    ``None`` if none tells the slices apart.
    """
    numbers = places.tolist()
    varying = [name for name in SPLITTING_ATTRIBUTES if len({header.attributes.get(name) for header in headers}) > 1]
    for count in range(1, _MOST_FACTS_TOGETHER + 1):
        splits = (_split_by(headers, numbers, names) for names in combinations(varying, count))
        found = [split for split in splits if split is not None]
        if found:
            return min(found, key=lambda split: (any(mixture_in(part) for part, _ in split), len(split)))
    return _split_by_time(headers, numbers)


def _split_by(headers: Sequence[Header], places: list[int], names: tuple[str, ...]) -> list[SubStack] | None:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, header in enumerate(headers):
        groups[tuple(header.attributes.get(name, "") for name in names)].append(index)
    if not _is_sound(groups.values(), places):
        return None
    return [([headers[i] for i in groups[key]], _describe(names, key)) for key in sorted(groups, key=_natural_order)]


def _is_sound(groups: Iterable[list[int]], places: list[int]) -> bool:
    """One slice at each place in every group, and no dust of single slices."""
    sizes = []
    for group in groups:
        if len({places[i] for i in group}) < len(group):
            return False
        sizes.append(len(group))
    return 2 * len(sizes) <= len(places)


def _natural_order(key: tuple[str, ...]) -> tuple[tuple[float, str], ...]:
    return tuple((_number(value), value) for value in key)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _describe(names: tuple[str, ...], key: tuple[str, ...]) -> str:
    shown = (name if name in _TIMES else f"{name} {value or 'absent'}" for name, value in zip(names, key, strict=True))
    return ", ".join(shown)


def _split_by_time(headers: Sequence[Header], places: list[int]) -> list[SubStack] | None:
    """The k-th image in time at each place makes volume k, if the volumes were acquired one after the other."""
    for name in _TIMES:
        times = [
            (_number(h.attributes.get("acquisition date", "0")), _number(h.attributes.get(name, ""))) for h in headers
        ]
        if any(time == float("inf") for _, time in times):
            continue
        order = sorted(range(len(headers)), key=times.__getitem__)
        seen: dict[int, int] = defaultdict(int)
        volumes: dict[int, list[int]] = defaultdict(list)
        for index in order:
            volumes[seen[places[index]]].append(index)
            seen[places[index]] += 1
        ordered = [volumes[k] for k in sorted(volumes)]
        apart = all(times[a[-1]] < times[b[0]] for a, b in pairwise(ordered))
        if apart and _is_sound(ordered, places):
            return [([headers[i] for i in sorted(volume)], name) for volume in ordered]
    return None


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
        values = [header.attributes.get(name, "") for header in headers]
        compared = set(values) if name in _TEXTS_OR_NONE else set(values) - {""}
        if len(compared) > 1:
            return _described(name, values)
    return ""


def _numbers(headers: Sequence[Header]) -> str:
    for name, tolerance in _NUMBERS.items():
        values = [_contrasts_number(header.attributes.get(name, "")) for header in headers]
        known = [value for value in values if value is not None]
        if len(_clusters(known, tolerance)) > 1:
            return _described(name, values)
    return ""


def _b_values(headers: Sequence[Header]) -> str:
    """A slice without a b-value has none: 0."""
    for name in _B_VALUES:
        values = [(_contrasts_number(header.attributes.get(name, "")) or 0.0) % _GE_OFFSET for header in headers]
        if len(_clusters(values, _B_TOLERANCE)) > 1:
            return _described(name, values)
    return ""


def _directions(headers: Sequence[Header]) -> str:
    for name in _DIRECTIONS:
        known = [value for header in headers if (value := header.attributes.get(name, ""))]
        vectors = [[_contrasts_number(part) or 0.0 for part in value.split("\\")] for value in known]
        if len({len(vector) for vector in vectors}) > 1 or (
            vectors and np.ptp(vectors, axis=0).max() > _COSINE_TOLERANCE
        ):
            return _described(name, known)
    return ""


def _timings(headers: Sequence[Header]) -> str:
    for name, tolerance in _TIMINGS.items():
        values = [_contrasts_number(header.attributes.get(name, "")) for header in headers]
        if 1 < _repeated(values, tolerance) <= max(2, len(headers) // 2):
            return _described(name, values)
    return ""


def _triggers(headers: Sequence[Header]) -> str:
    """Two or three trigger times of several slices each are phases; more are the order in which slices were acquired.

    Where a temporal position is given, it tells phases apart, and trigger times are those of the slices.
    """
    if any(
        "temporal position" in header.attributes or "temporal position index" in header.attributes for header in headers
    ):
        return ""
    values = [_contrasts_number(header.attributes.get("trigger time", "")) for header in headers]
    if 1 < _repeated(values, _TRIGGER_TOLERANCE) <= min(_MOST_PHASES, len(headers) // 2):
        return _described("trigger time", values)
    return ""


def _repeated(values: Sequence[float | None], tolerance: tuple[float, float]) -> int:
    """How many different values there are, exactly; 1 if rounding explains all differences."""
    known = [value for value in values if value is not None]
    return len(set(known)) if len(_clusters(known, tolerance)) > 1 else 1


def _contrasts_number(text: str) -> float | None:
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
