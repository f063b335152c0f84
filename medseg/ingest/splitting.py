"""What differs between the slices of one SeriesInstanceUID: several volumes to tell apart, or two contrasts in one.

Only what a scanner keeps constant over a volume is compared. Times of day, acquisition numbers, frame times and tube
current differ between the slices of sound volumes and prove nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, combinations, pairwise
from math import inf
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


def _is_sound(groups: Collection[list[int]], places: list[int]) -> bool:
    """One slice at each place in every group, and no dust of single slices."""
    alone = all(len({places[i] for i in group}) == len(group) for group in groups)
    return alone and 2 * len(groups) <= len(places)


def _natural_order(key: tuple[str, ...]) -> tuple[tuple[float, str], ...]:
    return tuple((_number(value), value) for value in key)


def _number(text: str) -> float:
    """Infinite for what is no number."""
    try:
        return float(text)
    except ValueError:
        return inf


def _describe(names: tuple[str, ...], key: tuple[str, ...]) -> str:
    shown = (name if name in _TIMES else f"{name} {value or 'absent'}" for name, value in zip(names, key, strict=True))
    return ", ".join(shown)


def _split_by_time(headers: Sequence[Header], places: list[int]) -> list[SubStack] | None:
    """The k-th image in time at each place makes volume k, if the volumes were acquired one after the other."""
    for name in _TIMES:
        times = [
            (_number(h.attributes.get("acquisition date", "0")), _number(h.attributes.get(name, ""))) for h in headers
        ]
        if any(time == inf for _, time in times):
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
    """By what the slices of one stack, each at a place of its own, differ although one volume has it in common.

    Such as ``"echo time (10 in 3 slices, 90 in 3 slices)"``; empty if they are alike.
    """
    found = chain(_different_texts(headers), _different_numbers(headers), _different_times(headers))
    return next((_described(name, values) for name, values in found), "")


_Difference = tuple[str, Sequence[float | str]]


def _different_texts(headers: Sequence[Header]) -> Iterator[_Difference]:
    always = {
        "modality": [header.modality for header in headers],
        "photometric interpretation": [header.photometric for header in headers],
    }
    for name, values in always.items():
        if len(set(values)) > 1:
            yield name, values
    for name in (*_TEXTS, *_TEXTS_OR_NONE):
        values = _texts(headers, name)
        if len(set(values) if name in _TEXTS_OR_NONE else set(values) - {""}) > 1:
            yield name, values


def _different_numbers(headers: Sequence[Header]) -> Iterator[_Difference]:
    for name, tolerance in _NUMBERS.items():
        values = _first_numbers(headers, name)
        if _differ(values, tolerance):
            yield name, values
    for name in _B_VALUES:  # a slice without a b-value has none: 0
        values = [0.0 if value == inf else value % _GE_OFFSET for value in _first_numbers(headers, name)]
        if _differ(values, _B_TOLERANCE):
            yield name, values
    for name in _DIRECTIONS:
        known = [text for text in _texts(headers, name) if text]
        vectors = [[0.0 if (n := _number(part)) == inf else n for part in text.split("\\")] for text in known]
        if len({len(vector) for vector in vectors}) > 1 or (
            known and np.ptp(vectors, axis=0).max() > _COSINE_TOLERANCE
        ):
            yield name, known


def _different_times(headers: Sequence[Header]) -> Iterator[_Difference]:
    for name, tolerance in _TIMINGS.items():
        values = _first_numbers(headers, name)
        if _differ(values, tolerance) and len(set(values) - {inf}) <= max(2, len(headers) // 2):
            yield name, values
    # Two or three trigger times of several slices each are phases; more are the order in which slices were acquired.
    # Where a temporal position is given, it tells phases apart, and trigger times are those of the slices.
    if not any(header.attributes.keys() & {"temporal position", "temporal position index"} for header in headers):
        values = _first_numbers(headers, "trigger time")
        most = min(_MOST_PHASES, len(headers) // 2)
        if _differ(values, _TRIGGER_TOLERANCE) and len(set(values) - {inf}) <= most:
            yield "trigger time", values


def _texts(headers: Sequence[Header], name: str) -> list[str]:
    return [header.attributes.get(name, "") for header in headers]


def _first_numbers(headers: Sequence[Header], name: str) -> list[float]:
    return [_number(text.partition("\\")[0]) for text in _texts(headers, name)]


def _differ(values: Sequence[float], tolerance: tuple[float, float]) -> bool:
    """Whether two neighbours among the known values are farther apart than rounding explains."""
    fraction, absolute = tolerance
    known = sorted(value for value in values if value != inf)
    return any(high - low > max(absolute, fraction * abs(high)) for low, high in pairwise(known))


def _described(name: str, values: Sequence[float | str]) -> str:
    """The name with the most frequent values, so that the slices can be found."""
    counts = Counter("absent" if v in ("", inf) else f"{v:g}" if isinstance(v, float) else v for v in values)
    shown = ", ".join(f"{value} in {count} slices" for value, count in counts.most_common(4))
    return f"{name} ({shown}{', …' if len(counts) > 4 else ''})"
