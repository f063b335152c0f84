"""Structures painted into one label map, one mask after the other, so that no more than one mask is ever held.

Where structures overlap, the scheme decides: regions by what they say of each value, an order by who lies above;
without either the overlap is refused with its size, since any choice would be a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.labels.label_map import examine
from medseg.labels.rules import READING_KEY, ROI_MAPPING_KEY, ReadingRules, plain_name
from medseg.labels.scheme import LabelScheme, listed
from medseg.resources import check_volume_size

_SHOWN = 12


class Structure(NamedTuple):
    """A declared structure as a canvas paints it: its name and its colour there."""

    name: str
    colour: int


def structures_by_name(names: Iterable[str], scheme: LabelScheme, rules: ReadingRules, where: str) -> dict[str, Any]:
    """The declared structure that each name of an object means; ``None`` for what is left out on purpose.

    The ``roi_mapping`` comes first, then the declared names; capitals and blanks round a name do not count. Raises
    ``Refusal``: ``unmapped-structure`` if a name is in neither, with the names there are.
    """
    declared = _declared(scheme, where)
    mapped = {plain_name(name): target for name, target in rules.names.items()}
    found: dict[str, Structure | None] = {}
    unknown = []
    for name in dict.fromkeys(names):
        target = mapped.get(plain_name(name), name)
        if target is None:
            found[name] = None
        elif (structure := declared.get(plain_name(target))) is not None:
            found[name] = structure
        else:
            unknown.append(name if target == name else f"{name} (mapped to {target})")
    if not unknown:
        return found
    known = listed([structure.name for structure in declared.values()], _SHOWN) or "none"
    raise Refusal(
        "unmapped-structure",
        f"{where} holds {listed([*map(repr, unknown)], _SHOWN)}, the declared structures are {known}; give every "
        f'name its structure in `{ROI_MAPPING_KEY}` of the datalist, {{"{unknown[0]}": "STRUCTURE"}}, or null to leave '
        "it out" + ("" if declared else ", and name the values under `labels`"),
    )


def _declared(scheme: LabelScheme, where: str) -> dict[str, Structure]:
    if scheme.regions:
        found = [Structure(name, 1 << bit) for bit, name in enumerate(scheme.regions)]
    else:
        found = [Structure(name, value) for value, name in scheme.values.items() if value != 0]
    declared = {plain_name(one.name): one for one in found}
    for one in found:
        if declared[plain_name(one.name)] != one:
            raise Refusal(
                "unmapped-structure",
                f"{where} names its structures, and the datalist declares {one.name!r} for two values; give each value "
                "a name of its own under `labels` (capitals do not count)",
            )
    return declared


@dataclass(frozen=True)
class Painted:
    """A label map with its grid and what was done for it."""

    array: NDArray[Any]
    geometry: Geometry
    notes: tuple[str, ...] = ()


class Canvas:
    """A label map under way.

    Parameters
    ----------
    shape
        Voxels along (i, j, k).
    scheme, rules
        Which structures there are, and what is done where they overlap.

    Attributes
    ----------
    array
        What is painted so far: values, or one bit for each region; views of it are handed to :meth:`paint`.
    """

    def __init__(self, shape: tuple[int, int, int], scheme: LabelScheme, rules: ReadingRules, where: str) -> None:
        self._scheme, self._where = scheme, where
        highest = 1 << max(len(scheme.regions) - 1, 0) if scheme.regions else max(scheme.values, default=0)
        dtype = np.min_scalar_type(highest)
        check_volume_size(shape, dtype.itemsize)
        self.array: NDArray[Any] = np.zeros(shape, dtype=dtype)
        self._names = dict(scheme.values)
        self._rank = _ranks(scheme, rules, where)
        self._overlaps: Counter[tuple[int, int]] = Counter()

    def paint(self, view: NDArray[Any], mask: NDArray[np.bool_], structure: Structure) -> None:
        """Paint ``mask`` into ``view``, a part of :attr:`array` of the same shape."""
        colour = structure.colour
        if self._scheme.regions:
            np.bitwise_or(view, view.dtype.type(colour), out=view, where=mask)
            return
        taken = mask & (view != 0) & (view != colour)
        if taken.any():
            mask = mask & ~self._keep(view, taken, colour)
        view[mask] = colour

    def _keep(self, view: NDArray[Any], taken: NDArray[np.bool_], colour: int) -> NDArray[np.bool_]:
        """Count what overlaps, and tell where the other structure stays on top."""
        keep = np.zeros_like(taken)
        for other in np.unique(view[taken]).tolist():
            both = taken & (view == other)
            self._overlaps[min(other, colour), max(other, colour)] += int(both.sum())
            if self._rank.get(other, -1) > self._rank.get(colour, -1):
                keep |= both
        return keep

    def labels(self) -> tuple[NDArray[Any], tuple[str, ...]]:
        """The label map, and notes on what overlapped.

        Raises ``Refusal``: ``overlapping-labels``.
        """
        if self._scheme.regions:
            return self._of_regions()
        undecided = {pair: n for pair, n in self._overlaps.items() if not self._rank.keys() >= set(pair)}
        if undecided:
            raise Refusal(
                "overlapping-labels",
                f"{self._where}: {self._told(undecided)}; a voxel has one value: declare regions, or say in "
                f'`{READING_KEY}` of the datalist which structure lies above, {{"order": ["BELOW", "ABOVE"]}}',
            )
        return self.array, ((f"{self._told(self._overlaps)}: the later in order is above",) if self._overlaps else ())

    def _of_regions(self) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Of each combination of regions its label, and how often no label says the same."""
        regions, table = list(self._scheme.regions.items()), np.array(self._scheme.table)
        said = [sum(1 << bit for bit, (_, values) in enumerate(regions) if label in values) for label in table.tolist()]
        notes = []
        for bits, count in examine(self.array)[1].voxels.items():
            if said[bits] == bits:
                continue
            names = listed([name for bit, (name, _) in enumerate(regions) if bits >> bit & 1])
            kept = listed([name for bit, (name, _) in enumerate(regions) if said[bits] >> bit & 1])
            notes.append(f"{count} voxels of {names} alone, which no value means, count as {kept}")
        return table.astype(np.min_scalar_type(table.max()))[self.array], tuple(notes)

    def _told(self, overlaps: dict[tuple[int, int], int]) -> str:
        pairs = [
            f"{self._names[first]} and {self._names[second]} overlap in {count} voxels"
            for (first, second), count in sorted(overlaps.items(), key=lambda item: -item[1])
        ]
        return listed(pairs, _SHOWN)


def _ranks(scheme: LabelScheme, rules: ReadingRules, where: str) -> dict[int, int]:
    if not rules.order or scheme.regions:
        return {}
    known = structures_by_name(rules.order, scheme, ReadingRules(), f"`order` for {where}")
    return {known[name].colour: rank for rank, name in enumerate(rules.order)}
