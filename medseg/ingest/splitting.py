"""Tell apart what one SeriesInstanceUID wrongly joins: echoes, b-values, time points, acquisitions, image types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from medseg.ingest.contrasts import mixture_in
from medseg.ingest.headers import Header
from medseg.ingest.tags import SPLITTING_FACTS

__all__ = ["Part", "separate_stacked"]

_TIMES = ("acquisition time", "content time")
_MOST_FACTS_TOGETHER = 3


@dataclass(frozen=True)
class Part:
    """Some slices of a series, and by what they were told apart from the others."""

    headers: tuple[Header, ...]
    because: str


def separate_stacked(headers: Sequence[Header], places: NDArray[np.int64]) -> list[Part] | None:
    """Split slices of which several lie at one place into parts that have one slice at each place.

    Parameters
    ----------
    headers
        Slices of one grid and orientation, sorted along the normal.
    places
        For each slice the number of its place.

    Returns
    -------
    list of Part or None
        The split that some acquisition facts give, into parts of one contrast where there is one, and into the fewest
        parts; ``None`` if no facts tell the slices apart.
    """
    numbers = places.tolist()
    varying = [name for name in SPLITTING_FACTS if len({header.facts.get(name) for header in headers}) > 1]
    for count in range(1, _MOST_FACTS_TOGETHER + 1):
        splits = (_split_by(headers, numbers, names) for names in combinations(varying, count))
        found = [split for split in splits if split is not None]
        if found:
            return min(found, key=lambda split: (any(mixture_in(part.headers) for part in split), len(split)))
    return _split_by_time(headers, numbers)


def _split_by(headers: Sequence[Header], places: list[int], names: tuple[str, ...]) -> list[Part] | None:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, header in enumerate(headers):
        groups[tuple(header.facts.get(name, "") for name in names)].append(index)
    if not _is_sound(groups.values(), places):
        return None
    return [
        Part(tuple(headers[i] for i in groups[key]), _describe(names, key))
        for key in sorted(groups, key=_natural_order)
    ]


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


def _split_by_time(headers: Sequence[Header], places: list[int]) -> list[Part] | None:
    """The k-th image in time at each place makes volume k, if the volumes were acquired one after the other."""
    for name in _TIMES:
        times = [(_number(h.facts.get("acquisition date", "0")), _number(h.facts.get(name, ""))) for h in headers]
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
            return [Part(tuple(headers[i] for i in sorted(volume)), name) for volume in ordered]
    return None
