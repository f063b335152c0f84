"""Where a structure lies in a label map: its parts, left and right apart, and a crop round each.

Everything here is geometry: a label map on its grid and what a second network was trained on give boxes of voxels.
A patient's right has the larger x (RAS+). The middle between both sides is that of everything which is labelled; where
nothing but the structure is, the middle of the grid stands for it, and a side for which nothing else speaks is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import Refusal
from medseg.geometry import Geometry, millimetres, ras_axes
from medseg.inference.roi import IndexBox

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")

SMALL_PART = 0.1
"""Parts below this share of the largest one are dropped."""
MOST_PARTS = 8
"""Of a structure without sides so many parts are looked at, the largest first."""

_BESIDE = 0.9
"""A part lies on a side if at least this share of it does."""
_COUNTERPART = 0.5
"""Of two parts on one side, as large as this beside each other, one is probably the other side's."""
_SAMPLED = 4_000_000
_EDGES = (0.5, 99.5)
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Part:
    """One connected part, or several of one side that fit into one crop.

    ``low`` inclusive and ``high`` exclusive bound it in voxels; ``right`` is the share of it to the right of the
    patient's middle, ``right_in_image`` that to the right of the grid's.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    voxels: int
    right: float
    right_in_image: float
    side: Side | None = None

    @property
    def centre(self) -> NDArray[np.float64]:
        """Index of the middle of its box."""
        return (np.asarray(self.low) + np.asarray(self.high) - 1) / 2


@dataclass(frozen=True)
class Found:
    """The parts that are looked at, the largest first, the crop of each, and what is worth noting of the others."""

    parts: tuple[Part, ...]
    crops: tuple[IndexBox, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CropRule:
    """How large a crop is: the part's box and a margin, within what was seen in training.

    ``smallest_mm`` and ``largest_mm`` are along the patient's left–right, posterior–anterior and inferior–superior
    axes; None if the bundle does not tell.
    """

    margin_mm: float
    smallest_mm: tuple[float, ...] | None = None
    largest_mm: tuple[float, ...] | None = None

    @classmethod
    def of(cls, margin_mm: float, training_range: Mapping[str, Any] | None) -> CropRule:
        """The rule for a bundle with this ``training_range``."""
        limits = (training_range or {}).get("fov_mm") or {}
        low, high = limits.get("low"), limits.get("high")
        return cls(margin_mm, tuple(low) if low else None, tuple(high) if high else None)

    def box(self, part: Part, geometry: Geometry) -> IndexBox:
        """The crop, moved inwards where the grid ends.

        A part that is larger than anything in training is refused as ``not-located``.
        """
        size = self._voxels(part, geometry)
        if size is None:
            extent = (np.asarray(part.high) - part.low) * geometry.spacing_mm
            found = millimetres([extent[axis] for axis in ras_axes(geometry)])
            raise Refusal(
                "not-located",
                f"found a part of {found} (left-right, posterior-anterior, inferior-superior), expected at most"
                f" {millimetres(self.largest_mm or ())}, which is what is labelled in a crop; look at what was located",
            )
        first = np.floor(part.centre - (size - 1) / 2 + 0.5).astype(int)
        first = np.clip(first, 0, np.asarray(geometry.shape) - size)
        return IndexBox(tuple(first.tolist()), tuple((first + size).tolist()))

    def holds(self, part: Part, geometry: Geometry) -> bool:
        """Whether a crop is known to be large enough for a part; never where no range is stated."""
        return self.largest_mm is not None and self._voxels(part, geometry) is not None

    def _voxels(self, part: Part, geometry: Geometry) -> NDArray[np.int64] | None:
        """Size of the crop along the array axes; None if the part is too large for any."""
        own = np.asarray(part.high) - np.asarray(part.low)
        size = np.ceil(own + 2 * self.margin_mm / np.asarray(geometry.spacing_mm) - _ROUNDING).astype(np.int64)
        for patient, axis in enumerate(ras_axes(geometry)):
            step = geometry.spacing_mm[axis]
            if self.smallest_mm is not None:
                least = math.ceil(self.smallest_mm[patient] / step)
                size[axis] = max(size[axis], least + (least * step < self.smallest_mm[patient]))
            if self.largest_mm is not None:
                most = math.floor(self.largest_mm[patient] / step)
                size[axis] = min(size[axis], most - (most * step > self.largest_mm[patient]))
        return None if (size < own).any() else np.minimum(size, geometry.shape)


def find_parts(
    labels: NDArray[np.integer[Any]],
    geometry: Geometry,
    wanted: Sequence[tuple[tuple[int, ...], Side | None]],
    rule: CropRule,
    *,
    sides: bool,
) -> Found:
    """The parts of a structure in a label map ``(i, j, k)`` and a crop round each.

    Parameters
    ----------
    labels, geometry
        What was labelled, on its grid.
    wanted
        Values that stand for the structure, with the side that they name, if they do.
    rule
        How large the crops are.
    sides
        Whether the structure is one on the left and one on the right: the largest part of each is taken, and others of
        its side that fit into the same crop. Else each of the :data:`MOST_PARTS` largest parts has its own.

    Raises
    ------
    Refusal
        ``not-located`` if there is none, it is too large, or a side cannot be told.
    """
    middle = _middle(labels, geometry, {value for values, _ in wanted for value in values})
    stated = [(values, side if sides else None) for values, side in wanted]
    parts = [part for values, side in stated for part in _components(labels, geometry, values, side, middle)]
    largest = max((part.voxels for part in parts), default=0)
    if not largest:
        raise Refusal("not-located", "it was not found in this image; look at the image, or crop with --roi")
    kept = sorted((part for part in parts if part.voxels >= SMALL_PART * largest), key=lambda part: -part.voxels)
    ml = geometry.voxel_volume_mm3 / 1000.0
    taken, left = kept[:MOST_PARTS], kept[MOST_PARTS:]
    if sides:
        placed = [replace(part, side=_side_of(part)) for part in kept]
        taken, left = _by_side(placed, geometry, rule)
        if kept[0].side is None:
            _check_sides(placed, taken)
    notes = [f"no {side} one was found" for side in SIDES if sides and side not in {part.side for part in taken}]
    if left:
        notes.append(f"left out: further parts of {', '.join(f'{part.voxels * ml:.2f} ml' for part in left)}")
    return Found(tuple(taken), tuple(rule.box(part, geometry) for part in taken), tuple(notes))


def _middle(labels: NDArray[np.integer[Any]], geometry: Geometry, own: set[int]) -> float:
    """The x between both sides of the patient, as other structures tell it, else the grid."""
    step = max(1, math.ceil((labels.size / _SAMPLED) ** (1 / 3)))
    some = labels[::step, ::step, ::step]
    index = np.argwhere(some)
    x, values = index @ geometry.affine[0, :3] * step + geometry.affine[0, 3], some[tuple(index.T)]
    known = np.unique(values)
    if not set(known.tolist()) <= own:
        reach = [np.percentile(x[values == value], _EDGES) for value in known]
        return float(np.min(reach) + np.max(reach)) / 2
    return _grid_middle(geometry)


def _grid_middle(geometry: Geometry) -> float:
    return float(geometry.corners_mm()[:, 0].mean())


def _components(
    labels: NDArray[np.integer[Any]],
    geometry: Geometry,
    values: tuple[int, ...],
    side: Side | None,
    middle: float,
) -> Iterator[Part]:
    """Connected parts (voxels that share a face, an edge or a corner), without small ones."""
    mask = np.isin(labels, values)
    around = ndimage.find_objects(mask.view(np.uint8))
    if not around:
        return
    numbered, _ = ndimage.label(mask[around[0]], np.ones((3, 3, 3)))
    counts, start = np.bincount(numbered.reshape(-1))[1:], np.array([one.start for one in around[0]])
    boxes = ndimage.find_objects(numbered)
    for number in np.flatnonzero(counts >= SMALL_PART * counts.max()).tolist():
        box = boxes[number]
        low, high = (start + [getattr(one, end) for one in box] for end in ("start", "stop"))
        i, j, k = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        a, b, c, shift = geometry.affine[0].astype(np.float32)
        x = (a * i + b * j + c * k + shift)[numbered[box] == number + 1]
        right, in_image = (float((x > where).mean()) for where in (middle, _grid_middle(geometry)))
        yield Part(tuple(low.tolist()), tuple(high.tolist()), int(counts[number]), right, in_image, side)


def _by_side(parts: Sequence[Part], geometry: Geometry, rule: CropRule) -> tuple[list[Part], list[Part]]:
    """The part of each side, the larger first, and those that were left out."""
    taken, left = [], []
    for side in SIDES:
        whole: Part | None = None
        for part in (part for part in parts if part.side == side):
            both = part if whole is None else _joined(whole, part)
            if whole is None or rule.holds(both, geometry):
                whole = both
            else:
                left.append(part)
        if whole is not None:
            taken.append(whole)
    return sorted(taken, key=lambda part: -part.voxels), left


def _joined(one: Part, other: Part) -> Part:
    low, high = np.minimum(one.low, other.low), np.maximum(one.high, other.high)
    return replace(one, low=tuple(low.tolist()), high=tuple(high.tolist()), voxels=one.voxels + other.voxels)


def _side_of(part: Part) -> Side:
    """On which side a part lies; what the label map calls it must agree."""
    lies: Side | None = "right" if part.right >= _BESIDE else "left" if part.right <= 1 - _BESIDE else None
    if part.side is not None and lies in {None, part.side}:
        return part.side
    if part.side is not None:
        what = f"the part that is called {part.side} lies on the patient's {lies} by the image's geometry"
        raise Refusal("not-located", f"{what}; is the image mirrored? Check its orientation")
    if lies is None:
        what = f"a part lies across the patient's middle ({part.right:.0%} of it on the right)"
        raise Refusal("not-located", f"{what}, so that its side cannot be told; leave sides out with --no-locate-sides")
    return lies


def _check_sides(parts: Sequence[Part], taken: Sequence[Part]) -> None:
    """Refuse what hangs on one guess of where the middle is: the two largest parts on one side, or one alone."""
    first, second = parts[0], parts[1] if len(parts) > 1 else None
    like = second is not None and second.side == first.side and second.voxels >= _COUNTERPART * first.voxels
    agree = first.right_in_image >= _BESIDE if first.side == "right" else first.right_in_image <= 1 - _BESIDE
    if not like and (agree or len(taken) > 1):
        return
    other = "none" if len(taken) == 1 else "no like one"
    what = "two like parts were found there" if like else "the middle of the image says otherwise"
    raise Refusal(
        "not-located",
        f"{other} was found on one side, and one on the {first.side} by the patient's middle, but {what}, so that its"
        " side cannot be told; give an image that shows both sides",
    )
