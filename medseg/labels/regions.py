"""Regions: sets of label values that overlap, each with a name, and how they become one label map (nnU-Net's meaning).

A table with one region is a table of regions: its single values are regions of one value. A network has one sigmoid
channel for each, in the order of the table. In a label map each region paints its own value over what the regions
before it painted: ``regions_class_order`` names these values. The other way round, a region is wherever a label map
holds one of its values, so a label map holds all regions at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.errors import UsageError

ORDER_KEY = "regions_class_order"
"""Key of a datalist, of nnU-Net's ``dataset.json`` and of a bundle's output: the value that each region paints."""

MOST_REGIONS = 12
"""A table of labels has a row for every combination of regions."""

Regions = dict[str, tuple[int, ...]]
"""Values by name; painted into a label map in this order."""


def is_region(value: Any) -> bool:
    """Whether an entry of a table of labels makes it one of regions: a list of other than one value."""
    return isinstance(value, list | tuple) and len(value) != 1


def check_regions(regions: Mapping[str, tuple[int, ...]], ignore: int | None, where: str) -> None:
    """Refuse what is no table of regions (a ``UsageError``): empty or equal ones, background or ``ignore`` inside."""
    if len(regions) > MOST_REGIONS:
        raise UsageError(f"{where} holds {len(regions)} regions, expected {MOST_REGIONS} at most; train them apart")
    seen: dict[frozenset[int], str] = {}
    for name, values in regions.items():
        shown = f"{where} holds the region {name!r} ({', '.join(map(str, values)) or 'no value'})"
        if not values:
            raise UsageError(f"{shown}; list the values of its parts, such as [1, 2], or leave it out")
        if 0 in values or len(set(values)) < len(values):
            raise UsageError(f"{shown}, expected different values above 0: 0 is background, which no region holds")
        if ignore in values:
            raise UsageError(f"{shown}, but {ignore} marks voxels that nobody judged; take it out of the region")
        if (twin := seen.setdefault(frozenset(values), name)) != name:
            raise UsageError(f"{shown} and the region {twin!r} of the same values; keep one of them")


def numbered(regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """A label for each region where none is painted: its own value if it has one alone, else the next free number."""
    free = 1 + max((value for values in regions.values() for value in values), default=0)
    several = [name for name, values in regions.items() if len(values) > 1]
    return {name: free + several.index(name) if name in several else regions[name][0] for name in regions}


def painted_values(regions: Mapping[str, tuple[int, ...]], order: Any, where: str) -> dict[str, int]:
    """The value that each region paints: as ``order`` says, else what no later region of the table holds.

    Raises ``UsageError`` if the order does not fit the regions, or there is none and the table does not tell.
    """
    if order is None:
        return _told_by_table(regions, where)
    if (
        not isinstance(order, list | tuple)
        or len(order) != len(regions)
        or not all(isinstance(value, int) and not isinstance(value, bool) for value in order)
        or len(set(order)) < len(order)
    ):
        raise UsageError(
            f"`{ORDER_KEY}` of {where} is {order!r}, expected {len(regions)} different values, one for each of "
            f"{', '.join(regions)}: what each region paints into the label map, over what those before it painted"
        )
    paints = dict(zip(regions, order, strict=True))
    for name, value in paints.items():
        if value not in regions[name]:
            raise UsageError(
                f"`{ORDER_KEY}` of {where} lets the region {name!r} ({', '.join(map(str, regions[name]))}) paint "
                f"{value}, which it does not hold; a voxel painted so would not belong to it: give one of its values"
            )
    return paints


def _told_by_table(regions: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    paints: dict[str, int] = {}
    later: set[int] = set()
    for name, values in reversed(list(regions.items())):
        own = [value for value in values if value not in later]
        if len(own) != 1:
            raise UsageError(
                f"{where} holds regions and no `{ORDER_KEY}`, and the table does not tell which value of the region "
                f"{name!r} ({', '.join(map(str, values))}) no later region holds; list larger regions first and add "
                f'"{ORDER_KEY}": one value for each of {", ".join(regions)}'
            )
        paints[name] = own[0]
        later |= set(values)
    return {name: paints[name] for name in regions}


def label_table(regions: Mapping[str, tuple[int, ...]], paints: Mapping[str, int]) -> tuple[int, ...]:
    """The label of every combination of regions; bit n of an index says whether region n is there.

    It is what painting in order gives. Where that would lose a region that the combination has, or add one, and a value
    belongs to exactly this combination, it is that value: regions that overlap without one holding the other.
    """
    rows = list(regions.items())
    exact: dict[int, int] = {}
    for value in sorted({value for values in regions.values() for value in values}, reverse=True):
        exact[_combination(value, rows)] = value
    table = []
    for bits in range(1 << len(rows)):
        painted = 0
        for number, (name, _) in enumerate(rows):
            painted = paints[name] if bits >> number & 1 else painted
        table.append(painted if _combination(painted, rows) == bits else exact.get(bits, painted))
    return tuple(table)


def _combination(value: int, rows: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    return sum(1 << number for number, (_, values) in enumerate(rows) if value in values)
