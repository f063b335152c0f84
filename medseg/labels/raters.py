"""One label map from several raters' of the same case: drawn, by majority, or by STAPLE.

A datalist's ``label`` may be a list of raters, ``[{"rater": "A", "label": ENTRY}, ...]`` or entries alone, who are then
called 1, 2, … Its top-level ``raters`` says how they become one label map; the choices are in :data:`WAYS`.

**Ties**, in both ways of agreeing: of the labels that tie the smallest wins. Background is 0, so a voxel on which two
raters disagree about a structure is background if one of them says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal, UsageError
from medseg.labels.label_map import LabelMap, examine, find_boxes

RATERS_KEY = "raters"
"""Key of a datalist: how several raters' labels become one."""

WAYS: Mapping[str, str] = {
    "draw": "another rater's, drawn by the seed, each time that training shows the case; elsewhere the majority",
    "majority": "the label that most raters gave a voxel",
    "staple": "the label that is most probable by how reliable each rater turns out to be (STAPLE)",
}
"""Ways to one label map; a rater's name chooses that one."""

_MOST_ITERATIONS = 100
_MARGIN_VOXELS = 4
"""Background round the labels by which STAPLE learns who invents: without any it cannot tell."""

_MOST_RATERS = 255


def raters_of(label: Any) -> dict[str, Any]:
    """Entries of a datalist's ``label`` by rater, in the order given; empty if it is not a list.

    Raises ``UsageError`` if a rater has no label, or two have one name.
    """
    if not isinstance(label, Sequence) or isinstance(label, str):
        return {}
    found: dict[str, Any] = {}
    for number, entry in enumerate(label, start=1):
        named = isinstance(entry, Mapping) and "rater" in entry
        name, inner = (str(entry["rater"]), entry.get("label")) if named else (str(number), entry)
        if not inner:
            raise UsageError(f'rater {name!r} has no label; write {{"rater": "{name}", "label": "PATH"}}')
        if name in found:
            raise UsageError(f"two raters of one case are called {name!r}; give each a name of its own")
        found[name] = inner
    return found


def is_rater(part: Any) -> bool:
    """Whether a part of a ``label`` is a rater with an entry."""
    return isinstance(part, Mapping) and set(part) == {"rater", "label"}


def check_way(way: str, names: Sequence[str]) -> None:
    """Refuse a way to one label map that is none of :data:`WAYS` and no rater's name (a ``UsageError``)."""
    if way not in WAYS and way not in names:
        known = ", ".join([*WAYS, *names])
        raise UsageError(f"`{RATERS_KEY}` is {way!r}, expected one of {known}; correct the datalist")


def one_map(maps: Mapping[str, LabelMap], way: str, *, ignore: int | None = None) -> LabelMap:
    """One label map of several raters' on one grid.

    ``maps``: label maps by rater. ``way``: one of :data:`WAYS`, where ``"draw"`` means the majority, or a rater's name.
    ``ignore``: the value of voxels that a rater did not judge: they have no vote there, and where nobody judged it
    stays. Raises ``UsageError`` if there is no label map, or the way is none; ``Refusal``: ``geometry-mismatch`` if a
    rater's grid is not the first one's.
    """
    names = list(maps)
    if not names:
        raise UsageError("found no rater; give at least one label map")
    check_way(way, names)
    first = maps[names[0]]
    for name in names[1:]:
        if not maps[name].geometry.matches(first.geometry):
            difference = maps[name].geometry.mismatch(first.geometry).replace("its image", f"that of {names[0]!r}")
            raise Refusal(
                "geometry-mismatch",
                f"the label of rater {name!r} {difference}; bring all raters' labels of a case onto its image's grid",
            )
    if way in maps:
        return maps[way]
    arrays = [maps[name].array for name in names]
    found = staple(arrays, ignore=ignore) if way == "staple" else majority(arrays, ignore=ignore)
    array, values = examine(found)
    return LabelMap(array, first.geometry, values)


def majority(arrays: Sequence[NDArray[Any]], *, ignore: int | None = None) -> NDArray[Any]:
    """The label that most arrays give a voxel; of labels that tie the smallest.

    One label is counted at a time, in one byte a voxel, and only in the box where the arrays hold anything but 0.

    Parameters
    ----------
    arrays
        Label maps of one shape, axes (i, j, k).
    ignore
        A value that has no vote; it stays where no array has another one.

    Raises
    ------
    UsageError
        If there are more than 255 of them.

    Examples
    --------
    >>> majority([np.array([0, 1, 1, 2]), np.array([0, 1, 2, 3]), np.array([1, 1, 0, 3])]).tolist()
    [0, 1, 0, 3]
    """
    if len(arrays) > _MOST_RATERS:
        raise UsageError(f"found {len(arrays)} raters of one case, expected at most {_MOST_RATERS}")
    box = _box(arrays)
    # `ignore` may be larger than what these raters drew, and so than what the type of their labels holds
    result = np.zeros(arrays[0].shape, dtype=np.result_type(*arrays, np.min_scalar_type(ignore or 0)))
    parts, inner = [array[box] for array in arrays], result[box]
    most = np.zeros(inner.shape, dtype=np.uint8)
    if ignore is not None:
        inner[...] = ignore
    for value in sorted({int(value) for part in parts for value in np.unique(part)} - {ignore}):
        votes = np.zeros(inner.shape, dtype=np.uint8)
        for part in parts:
            votes += part == value
        wins = votes > most  # only more, so that the smaller label keeps a tie
        inner[wins], most[wins] = value, votes[wins]
    return result


def staple(arrays: Sequence[NDArray[Any]], *, ignore: int | None = None) -> NDArray[Any]:
    """The most probable labels, with each rater's reliability estimated from how they agree (STAPLE).

    SimpleITK's ``MultiLabelSTAPLE`` in the box where any array holds anything but 0, and four voxels round it, so that
    the size of the image does not change the estimate. It stops when no reliability changes by more than 1e-5, or after
    100 rounds. Voxels that it leaves undecided take the :func:`majority`, which has the rule for ties.

    Source: Warfield, Zou, Wells, *Simultaneous truth and performance level estimation*, IEEE TMI 23:903 (2004); for
    several labels Rohlfing, Russakoff, Maurer, IPMI 2003, LNCS 2732.

    ``arrays``: label maps of one shape, axes (i, j, k). ``ignore``: a value that is no label: there the rater counts as
    giving the majority's label.
    """
    import SimpleITK as sitk  # noqa: N813  half a second, and few datalists have several raters

    result = majority(arrays, ignore=ignore)
    box = _box(arrays, _MARGIN_VOXELS)
    voted = result[box]
    if not voted.size:
        return result
    labels = np.unique(np.concatenate([np.unique(array[box]) for array in arrays]))
    undecided = len(labels)
    images = []
    for array in arrays:
        part = array[box]
        part = part if ignore is None else np.where(part == ignore, voted, part)
        images.append(sitk.GetImageFromArray(np.searchsorted(labels, part).astype(np.uint16)))
    estimate = sitk.MultiLabelSTAPLEImageFilter()
    estimate.SetLabelForUndecidedPixels(undecided)
    estimate.SetMaximumNumberOfIterations(_MOST_ITERATIONS)
    found = sitk.GetArrayFromImage(estimate.Execute(images))
    decided = found < undecided
    if ignore is not None:
        decided &= voted != ignore
    voted[decided] = labels[found[decided]]
    return result


def _box(arrays: Sequence[NDArray[Any]], margin: int = 0) -> tuple[slice, ...]:
    """Where any array holds anything but 0, with a margin as far as the arrays reach; empty if none does."""
    occupied = np.zeros(arrays[0].shape, dtype=bool)
    for array in arrays:
        occupied |= array != 0
    found = find_boxes(occupied.view(np.uint8)).get(1, ())
    if not found:
        return (slice(0, 0),) * occupied.ndim
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in found)
