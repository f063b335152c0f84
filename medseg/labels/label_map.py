"""A label map from a file, checked: whole numbers that are declared, and how much of each label there is.

Training, planning, the audit and the evaluation all read labels here, so that they take the same files, refuse the
same files, and say so in the same words.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import read_volume
from medseg.labels.scheme import LARGEST_LABEL, listed

Box = tuple[slice, ...]

WHOLE_TOLERANCE = 1e-3
"""How far a value may lie from a whole number: what a header's scale leaves, far less than any interpolation does."""

_TABLE_SPAN = 1 << 17
"""Largest range of values that is counted and renumbered with a table."""

_INTEGER_LIMIT = 2.0**31
_VALUES_SHOWN = 5
_MAP_HINT = "`medseg manifest create --images DATALIST --map {value}=LABEL -o DATALIST`"


@dataclass(frozen=True)
class LabelValues:
    """The values of a label map in numbers."""

    voxels: dict[int, int]
    """Number of voxels of each value that occurs, background included, as they are meant: rounded and mapped."""
    fractional: int = 0  # number of voxels whose value is no whole number; they are in no count of ``voxels``
    example: float = 0.0  # one such value
    rounded_by: float = 0.0  # largest distance from a whole number among the others


class LabelFault(NamedTuple):
    """Why a label map cannot be used: a code, and what was found, what was expected, what to do."""

    code: Literal["fractional-labels", "unexpected-labels"]
    message: str


@dataclass(frozen=True)
class LabelMap:
    """A checked label map."""

    array: NDArray[Any]  # labels, axes (i, j, k); ``uint8``, or ``uint16`` where a value is beyond 255
    geometry: Geometry  # the grid: voxel index → mm, RAS+
    values: LabelValues  # how much of each label there is
    notes: tuple[str, ...] = ()  # what was done to make it: a threshold, a resampling, slices that were filled

    @property
    def volumes_ml(self) -> dict[int, float]:
        """Volume of each value that occurs, background left out, in ml."""
        millilitres = self.geometry.voxel_volume_mm3 / 1000.0
        return {value: count * millilitres for value, count in self.values.voxels.items() if value != 0}


def read_label_map(
    path: str | os.PathLike[str],
    *,
    declared: Mapping[int, str] | None = None,
    mapping: Mapping[int, int] | None = None,
) -> LabelMap:
    """Read a label map and check it.

    Parameters
    ----------
    declared
        Names by value that the label map may hold, after ``mapping``; background needs no name. Empty or ``None``
        allows every value from 0 to 65535.
    mapping
        Value in the file → label that is meant; values it does not name stay as they are.

    Raises
    ------
    Refusal
        ``unreadable`` if the file is missing, ``unexpected-labels`` if a value is no whole number, out of range or not
        declared, and whatever :func:`medseg.ingest.read_volume` refuses.
    """
    path = Path(path)
    if not path.exists():
        raise Refusal("unreadable", f"the label {path.name} does not exist; correct the datalist or restore the file")
    try:
        array, geometry, _ = read_volume(path)
    except Refusal as refusal:
        raise no_label(refusal, f"the label {path.name}") from refusal
    except OSError as error:
        raise Refusal("unreadable", f"the label {path.name} cannot be read: {error.strerror}") from error
    labels, values = check_labels(array, f"the label {path.name}", declared=declared, mapping=mapping)
    return LabelMap(labels, geometry, values)


def no_label(refusal: Refusal, name: str) -> Refusal:
    """A volume's refusal as that of the label map ``name``, with what labels besides can be mistaken in."""
    advice = ""
    if refusal.code == "not-3d":
        advice = "; a label map is one volume of whole numbers: join one channel per structure into one map first"
    elif refusal.code == "not-an-image":
        advice = "; a label is one label map, DICOM segmentation or structure set: name the file itself"
    return Refusal(refusal.code, f"{name}: {refusal.message}{advice}")


def check_labels(
    array: NDArray[Any],
    name: str,
    *,
    declared: Mapping[int, str] | None = None,
    mapping: Mapping[int, int] | None = None,
) -> tuple[NDArray[Any], LabelValues]:
    """An array as labels, with its values counted; ``name`` says in messages whose array it is.

    Raises ``Refusal``: ``unexpected-labels``.
    """
    labels, values = examine(array, mapping)
    fault = fault_of(values, declared)
    if fault is not None:
        raise Refusal("unexpected-labels", f"{name}: {fault.message}")
    return labels, values


def examine(array: NDArray[Any], mapping: Mapping[int, int] | None = None) -> tuple[NDArray[Any], LabelValues]:
    """Round, map and count the values of an array, whatever they are; :func:`fault_of` judges them.

    Returns
    -------
    array
        Same shape; ``uint8`` or ``uint16`` unless a value is out of range. What is no whole number is 0.
    values
        What there is.
    """
    whole, fractional, example, rounded_by = _whole(array)
    stored = _count(whole)
    if fractional:
        stored[0] -= fractional
    target = {value: (mapping or {}).get(value, value) for value in {*stored, 0}}
    meant: dict[int, int] = {}
    for value, count in stored.items():
        meant[target[value]] = meant.get(target[value], 0) + count
    voxels = {value: count for value, count in sorted(meant.items()) if count}
    return _relabelled(whole, target), LabelValues(voxels, fractional, example, rounded_by)


def fault_of(values: LabelValues, declared: Mapping[int, str] | None = None) -> LabelFault | None:
    """What is wrong with the values of a label map; the gravest fault alone, since others follow from it."""
    if values.fractional:
        return LabelFault(
            "fractional-labels",
            f"the labels are not whole numbers: {values.fractional} voxels hold values such as {values.example:.5g}, "
            f"expected whole numbers within {WHOLE_TOLERANCE:g}; make the label map again with nearest-neighbour "
            "interpolation",
        )
    if odd := {value: count for value, count in values.voxels.items() if not 0 <= value <= LARGEST_LABEL}:
        expected = f"expected whole numbers from 0 to {LARGEST_LABEL}; correct the label map or map the value"
    elif declared and (odd := {value: n for value, n in values.voxels.items() if value and value not in declared}):
        expected = (
            f"declared are {_named(declared)}; correct the label map, declare the value with its name under `labels`, "
            "or map it to one of these"
        )
    else:
        return None
    shown = [f"{value} in {count} voxels" for value, count in list(odd.items())[:_VALUES_SHOWN]]
    shown += [f"{len(odd) - len(shown)} more values"] if len(odd) > len(shown) else []
    hint = _MAP_HINT.format(value=next(iter(odd)))
    return LabelFault("unexpected-labels", f"the labels hold {listed(shown)}, {expected}: {hint}")


def _named(declared: Mapping[int, str]) -> str:
    names = {0: "background", **declared}
    return listed([f"{value} ({name})" if name else str(value) for value, name in sorted(names.items())], 20)


def _whole(array: NDArray[Any]) -> tuple[NDArray[Any], int, float, float]:
    """Integers, how many values were none, one of these, and by how much the others were rounded."""
    if not np.issubdtype(array.dtype, np.inexact):
        return (array.astype(np.uint8) if array.dtype == bool else array), 0, 0.0, 0.0
    rounded = np.rint(array)
    off = np.abs(array - rounded)
    is_whole = off <= WHOLE_TOLERANCE  # false for NaN
    fractional = int(array.size - np.count_nonzero(is_whole))
    example = float(array[~is_whole].ravel()[0]) if fractional else 0.0
    rounded_by = float(off.max(initial=0.0, where=is_whole))
    rounded[~is_whole] = 0.0
    np.clip(rounded, -_INTEGER_LIMIT, _INTEGER_LIMIT, out=rounded)
    dtype = np.int64 if abs(rounded).max(initial=0.0) >= 2**15 else np.int16
    return rounded.astype(dtype), fractional, example, rounded_by


def _count(array: NDArray[Any]) -> dict[int, int]:
    """Voxels of each value that occurs."""
    low, high = int(array.min()), int(array.max())
    if high - low >= _TABLE_SPAN:
        pairs = zip(*np.unique(array, return_counts=True), strict=True)
        return {int(value): int(count) for value, count in pairs}
    table = np.zeros(high - low + 1, dtype=np.int64)
    # Slabs along the slowest axis in memory, so that counting holds no second volume.
    for plane in np.moveaxis(array, -1, 0) if array.flags.f_contiguous else array:
        table += np.bincount(plane.ravel(order="K").astype(np.intp) - low, minlength=len(table))
    return {low + int(index): int(table[index]) for index in np.flatnonzero(table)}


def _relabelled(array: NDArray[Any], target: Mapping[int, int]) -> NDArray[Any]:
    """The array with each value replaced by its target, in the smallest type of labels that holds them."""
    low, high = min(target.values()), max(target.values())
    if low < 0 or high > LARGEST_LABEL:
        return array  # refused by whoever asks fault_of
    dtype = np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16
    if all(value == meant for value, meant in target.items()):
        return array.astype(dtype, copy=False)
    known = np.array(sorted(target))
    meant = np.array([target[value] for value in sorted(target)], dtype=dtype)
    if known[-1] - known[0] >= _TABLE_SPAN:
        return np.asarray(meant[np.searchsorted(known, array)])
    table = np.zeros(known[-1] - known[0] + 1, dtype=dtype)
    table[known - known[0]] = meant
    return np.asarray(table[array.astype(np.intp) - known[0]])


def find_boxes(labels: NDArray[np.integer[Any]]) -> dict[int, Box]:
    """The smallest box around every label but 0, axes as those of ``labels``."""
    from scipy import ndimage  # not needed to read a label map

    # scipy walks in C order: a label map in Fortran order is five times quicker to look at transposed
    turned = labels.flags.f_contiguous and not labels.flags.c_contiguous
    found = enumerate(ndimage.find_objects(labels.T if turned else labels), start=1)
    return {label: box[::-1] if turned else box for label, box in found if box is not None}


def joined(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of them; no axis without any."""
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*boxes, strict=True))
