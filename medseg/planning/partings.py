"""Structures that readers part by one slice, such as head and body of the hippocampus, and what training does then.

Where that slice lies is a reader's choice, and the next reader takes the one beside it. A network that is told of one
choice only learns the choices of its training cases by heart; and it cannot know in which direction slices lie if
patches are turned out of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from numpy.typing import NDArray

from medseg.labels.label_map import find_boxes

SIGMA_SLICES = 1.1
"""How far readers are taken to differ, as a standard deviation in slices."""
_TILT = 0.12  # radians; a slice of the training patch still looks like one
_TILTING_SHEAR = 0.03
_SHEAR = 0.1
_CASES = 3  # fewer may be parted by chance


@dataclass(frozen=True)
class Parting:
    """Two structures (label values, the lower first) that touch and lie on either side of a slice across an axis of
    the patient: 0 left-right, 1 posterior-anterior, 2 inferior-superior."""

    axis: int
    structures: tuple[int, int]


def partings_of(label: NDArray[Any], axes: Sequence[int]) -> set[Parting]:
    """Those of one label map ``(i, j, k)``; ``axes`` are its axes for the patient's x, y and z."""
    found = set()
    for (first, before), (second, behind) in permutations(find_boxes(label).items(), 2):
        for patient, axis in enumerate(axes):
            at = behind[axis].start
            if before[axis].stop != at:
                continue
            if ((label.take(at - 1, axis) == first) & (label.take(at, axis) == second)).any():
                found.add(Parting(patient, (min(first, second), max(first, second))))
    return found


def usual_partings(cases: Iterable[tuple[set[Parting], Iterable[int]]]) -> tuple[Parting, ...]:
    """Those of half of the cases in which both structures occur, three at least.

    ``cases`` are the partings and the structures of each.
    """
    parted, together = Counter[Parting](), Counter[tuple[int, int]]()
    for found, values in cases:
        parted.update(found)
        together.update(combinations(sorted(values), 2))
    usual = (one for one, times in parted.items() if times >= max(_CASES, together[one.structures] / 2))
    return tuple(sorted(usual, key=lambda one: (one.structures, one.axis)))


def groups_of(partings: Iterable[Parting]) -> list[list[int]]:
    """The structures that are parted from one another, directly or by way of others."""
    groups: list[set[int]] = []
    for parting in partings:
        joined = set(parting.structures).union(*(group for group in groups if group & set(parting.structures)))
        groups = [group for group in groups if not group & joined] + [joined]
    return sorted(sorted(group) for group in groups)


def turns(partings: Iterable[Parting], rotate_range: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ranges of rotation and shear of :class:`medseg.transforms.RandSpatiald` that leave the parting slices nearly be.

    A rotation about an axis tilts the slices across the other two; a shear tilts those across the axis that it moves.
    """
    across = {parting.axis for parting in partings}
    rotation = tuple(min(most, _TILT) if across - {axis} else most for axis, most in enumerate(rotate_range))
    shear = tuple(_TILTING_SHEAR if moved in across else _SHEAR for moved, _ in permutations(range(3), 2))
    return rotation, shear


def soft_loss(partings: Sequence[Parting], data_mm: Sequence[float], planned_mm: Sequence[float]) -> dict[str, Any]:
    """The loss whose borders are soft by ``SIGMA_SLICES`` of the data, whose spacing may not be the planned one."""
    sigma = max(SIGMA_SLICES * data_mm[one.axis] / planned_mm[one.axis] for one in partings)
    soft = {"sigma_voxels": round(sigma, 2), "groups": groups_of(partings)}
    return {"_target_": "medseg.training.SoftBorderLoss", **soft}
