"""RT Structure Set (PS3.3, A.19) as a label map: outlines filled on the slices of the image's grid.

**Rules.** A contour belongs to the slice of the grid in whose plane all its points lie, within a tenth of the distance
of slices; these may be oblique or sheared. Closed contours of one ROI in one slice are joined by exclusive or, whether
they are called CLOSED_PLANAR or CLOSEDPLANAR_XOR: what lies in an odd number of them is inside. The rule for a pixel is
that of :mod:`medseg.labels.rasterise`. Points, open contours and closed ones of fewer than three points hold nothing
and are left out with a note. A gap between two contoured slices is missing where the two lie over each other, or where
only every second (third, …) slice has contours: it is refused, filled or left empty as asked
(:class:`~medseg.labels.rules.ReadingRules`). What looks odd and may be meant is noted: one of several parts that lacks
a slice, a hole that leaves hardly anything, contours that hold no voxel's centre.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import edt
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.dicom_header import Header
from medseg.labels.canvas import Canvas, Painted, Structure, structures_by_name
from medseg.labels.dicom_objects import check_belongs, hashed, items_of, read_object, well_formed
from medseg.labels.frames import TOLERANCE_VOXELS
from medseg.labels.image_grid import ImageGrid
from medseg.labels.rasterise import fill_plane
from medseg.labels.rules import READING_KEY, ReadingRules
from medseg.labels.scheme import LabelScheme, listed

_CLOSED: Final = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OPEN: Final = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
_NUMBERS: Final = frozenset(b"0123456789+-.eE\\ ")
_FARTHEST_MM: Final = 1e5
_CROSSING_SHARE: Final = 0.01
"""Largest share of an ROI that may lie in two contours which cross, where the set does not say that it means XOR."""


@dataclass(frozen=True)
class Roi:
    """One structure of a set: its closed contours as points (n × 3) in mm, RAS+."""

    number: int
    name: str
    frame_of_reference: str  # hashed
    contours: tuple[NDArray[np.float64], ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # contours that hold nothing, by kind
    means_xor: bool = False  # says so by the type of a contour


@dataclass(frozen=True)
class StructureSet:
    """A structure set taken apart."""

    name: str
    rois: tuple[Roi, ...]
    series: frozenset[str]  # that it refers to, hashed


def open_rtstruct(header: Header, name: str) -> StructureSet:
    """Take a structure set apart and check that it agrees with itself.

    Raises ``Refusal``: ``malformed-object``, ``non-finite``, ``truncated``.
    """
    return structure_set(read_object(header, name), name)


def structure_set(dataset: Dataset, name: str) -> StructureSet:
    """The same for a data set in memory."""
    with well_formed(name):
        usual = hashed(dataset.get("FrameOfReferenceUID"))
        series: set[str] = set()
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
            usual = usual or hashed(frame.get("FrameOfReferenceUID"))
            for study in frame.get("RTReferencedStudySequence") or []:
                items = study.get("RTReferencedSeriesSequence") or []
                series |= {hashed(item.get("SeriesInstanceUID")) for item in items}
        rois = _rois(dataset, usual, name)
    return StructureSet(name, rois, frozenset(series - {""}))


def _rois(dataset: Dataset, usual: str, name: str) -> tuple[Roi, ...]:
    named: dict[int, Dataset] = {}
    for item in items_of(dataset, "StructureSetROISequence"):
        if (number := int(item.ROINumber)) in named:
            raise ValueError(f"two ROIs have the number {number}")
        if not str(item.get("ROIName") or "").strip():
            raise ValueError(f"ROI {number} has no name")
        named[number] = item
    if not named:
        raise ValueError("Structure Set ROI Sequence names no ROI")
    drawn: dict[int, Dataset] = {}
    for item in items_of(dataset, "ROIContourSequence"):
        if (number := int(item.ReferencedROINumber)) not in named:
            raise ValueError(f"contours refer to ROI {number}, there are {sorted(named)}")
        if number in drawn:
            raise ValueError(f"ROI {number} has two lists of contours")
        drawn[number] = item
    return tuple(_roi(number, item, drawn.get(number), usual, name) for number, item in named.items())


def _roi(number: int, item: Dataset, drawn: Dataset | None, usual: str, name: str) -> Roi:
    roi_name = str(item.ROIName).strip()
    contours = []
    left_out: Counter[str] = Counter()
    means_xor = False
    for index, contour in enumerate([] if drawn is None else items_of(drawn, "ContourSequence"), start=1):
        kind = str(contour.ContourGeometricType).strip()
        where = f"contour {index} of ROI {roi_name!r}"
        if kind in _OPEN:
            left_out[kind] += 1
            continue
        if kind not in _CLOSED:
            raise ValueError(f"{where} is of type {kind!r}, expected one of {listed([*_CLOSED, *_OPEN])}")
        means_xor = means_xor or kind == _CLOSED[1]
        if any(float(value) for value in contour.get("ContourOffsetVector") or ()):
            raise ValueError(f"{where} is moved by a Contour Offset Vector, which is retired; expected points in place")
        points = _points(contour, where, name)
        if len(points) < 3:
            left_out["closed contours of fewer than three points"] += 1
        else:
            contours.append(points)
    frame = hashed(item.get("ReferencedFrameOfReferenceUID")) or usual
    return Roi(number, roi_name, frame, tuple(contours), dict(left_out), means_xor)


def _points(contour: Dataset, where: str, name: str) -> NDArray[np.float64]:
    """Corners in RAS+, straight from the text: a number at a time would take minutes."""
    element = contour.get_item("ContourData")
    raw = b"" if element is None else element.value
    if isinstance(raw, bytes):
        raw = raw.strip(b"\0 ")
        if set(raw) - _NUMBERS:
            raise Refusal("non-finite", f"{name}: {where} holds what is no decimal number; export the structures again")
        numbers = np.array(raw.split(b"\\") if raw else [], dtype="S").astype(np.float64)
    else:
        numbers = np.array([] if raw is None else raw, dtype=np.float64).reshape(-1)
    stated = contour.get("NumberOfContourPoints")
    if len(numbers) % 3 or (stated is not None and int(stated) * 3 != len(numbers)):
        raise ValueError(f"{where} has {len(numbers)} coordinates for {stated} points, expected three for each")
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0.0) > _FARTHEST_MM:
        raise Refusal("non-finite", f"{name}: {where} has points that lie nowhere; export the structures again")
    return numbers.reshape(-1, 3) * (-1.0, -1.0, 1.0)


def read_rtstruct(
    structures: StructureSet, scheme: LabelScheme, rules: ReadingRules, image: ImageGrid | None
) -> Painted:
    """The label map of a structure set on its image's grid.

    Raises ``Refusal``: ``no-image-grid``, ``unmapped-structure``, ``overlapping-labels``, ``other-frame-of-reference``,
    ``off-slice-contours``, ``missing-contours``, ``outside-image``.
    """
    name = structures.name
    if image is None:
        raise no_image_grid(name)
    named = structures_by_name([roi.name for roi in structures.rois], scheme, rules, name)
    taken = [(roi, structure) for roi in structures.rois if (structure := named[roi.name]) is not None]
    notes: list[str] = []
    for frame in dict.fromkeys(roi.frame_of_reference for roi, _ in taken):
        notes += check_belongs(name, structures.series, frame, image)
    canvas = Canvas(image.geometry.shape, scheme, rules, name)
    work = _Work(name, canvas, rules, image)
    outlines = {roi.number: _in_voxels(roi, image.geometry) for roi, _ in taken}
    axis = _slice_axis(outlines)
    for roi, structure in taken:
        notes += _paint(roi, structure, outlines[roi.number], axis, work)
    array, more = canvas.labels()
    return Painted(array, image.geometry, tuple(dict.fromkeys([*notes, *more])))


@dataclass(frozen=True)
class _Work:
    """What painting an ROI needs besides it."""

    name: str
    canvas: Canvas
    rules: ReadingRules
    image: ImageGrid


def no_image_grid(name: str) -> Refusal:
    """Why a structure set cannot be read by itself."""
    return Refusal(
        "no-image-grid",
        f"{name} is a structure set, whose outlines have no grid of their own; give it with its image, as an item of a "
        "datalist",
    )


def _in_voxels(roi: Roi, geometry: Geometry) -> list[NDArray[np.float64]]:
    to_index = np.linalg.inv(geometry.affine)
    return [points @ to_index[:3, :3].T + to_index[:3, 3] for points in roi.contours]


def _slice_axis(outlines: Mapping[int, list[NDArray[np.float64]]]) -> int:
    """The axis of the grid along which contours are flat; the last one where there is none."""
    spread = sum((np.ptp(points, axis=0) for contours in outlines.values() for points in contours), np.zeros(3))
    return 2 if not spread.any() else int(np.argmin(spread))


def _paint(roi: Roi, structure: Structure, outlines: list[NDArray[np.float64]], axis: int, work: _Work) -> list[str]:
    """Fill the contours of one ROI and paint them; notes on what was done."""
    where = f"{roi.name} of {work.name}"
    notes = [f"{where}: {count} {kind} left out, which hold nothing" for kind, count in roi.left_out.items()]
    if not outlines:
        return [*notes, f"{where} has no contours: it counts as absent"]
    slices = _by_slice(outlines, axis, where, work.image.geometry)
    size = work.canvas.array.shape[axis]
    outside = sum(len(rings) for k, rings in slices.items() if not 0 <= k < size)
    planes = np.moveaxis(work.canvas.array, axis, 0)
    masks: dict[int, NDArray[np.bool_]] = {}
    margin, last = 0.5 + TOLERANCE_VOXELS, np.array(planes.shape[1:]) - 1
    repeated = crossing = cut = thin = 0
    for k in sorted(k for k in slices if 0 <= k < size):
        plane = fill_plane(slices[k], planes.shape[1:])
        masks[k], repeated, crossing = plane.inside, repeated + plane.repeated, crossing + plane.crossing
        thin += plane.is_thin
        cut += sum(bool((ring < -margin).any() or (ring > last + margin).any()) for ring in slices[k])
    if not masks or (cut and not any(mask.any() for mask in masks.values())):
        raise Refusal(
            "outside-image",
            f"{where}: all {len(outlines)} contours lie outside the image; pair the structure set with its own image",
        )
    filled = sum(int(mask.sum()) for mask in masks.values()) + crossing
    if crossing > _CROSSING_SHARE * filled and not roi.means_xor:
        raise Refusal(
            "malformed-object",
            f"{where}: {crossing} of {filled} voxels lie in two contours that cross, which CLOSED_PLANAR does not call "
            f"in or out; expected at most {_CROSSING_SHARE:.0%}: join the contours, or write them as CLOSEDPLANAR_XOR",
        )
    notes += [f"{where}: {outside} contours lie above or below the image and were left out"] * bool(outside)
    notes += [f"{where}: {cut} contours reach beyond the image and were cut"] * bool(cut)
    notes += [f"{where}: {repeated} contours fill the same voxels as another one and count once"] * bool(repeated)
    notes += [f"{where}: {crossing} voxels where contours cross count as outside"] * bool(crossing)
    notes += [f"{where}: {thin} slices where an inner contour leaves a tenth of the outer one or less"] * bool(thin)
    if not any(mask.any() for mask in masks.values()):
        notes.append(f"{where}: its {len(outlines)} contours hold no voxel's centre: it counts as absent")
    notes += _bridge(masks, where, work, axis)
    for k, mask in masks.items():
        work.canvas.paint(planes[k], mask, structure)
    return notes


def _by_slice(
    outlines: list[NDArray[np.float64]], axis: int, where: str, geometry: Geometry
) -> dict[int, list[NDArray[np.float64]]]:
    """Contours as (row, column) by the slice of the grid that they lie in."""
    found: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    within = [other for other in range(3) if other != axis]
    off = []
    for points in outlines:
        k = int(np.rint(points[:, axis].mean()))
        off.append(float(np.abs(points[:, axis] - k).max()))
        found[k].append(points[:, within])
    far = [distance for distance in off if distance > TOLERANCE_VOXELS]
    if far:
        raise Refusal(
            "off-slice-contours",
            f"{where}: {len(far)} of {len(off)} contours lie up to {max(far) * geometry.spacing_mm[axis]:.3g} mm off "
            f"the slices of the image ({geometry.describe()}), expected {TOLERANCE_VOXELS:g} of their distance at "
            "most; give the image that they were drawn on",
        )
    return found


def _bridge(masks: dict[int, NDArray[np.bool_]], where: str, work: _Work, axis: int) -> list[str]:
    """Find slices that should have contours, and fill them if that is asked for; notes on what was done."""
    drawn = sorted(k for k, mask in masks.items() if mask.any())
    apart = [(a, b) for a, b in pairwise(drawn) if b - a > 1]
    regular = len(drawn) > 2 and len(apart) == len(drawn) - 1 and math.gcd(*(b - a for a, b in apart)) > 1
    gaps = [(a, b) for a, b in apart if regular or (masks[a] & masks[b]).any()]
    missing = sum(b - a - 1 for a, b in gaps)
    if not gaps:
        return [] if work.rules.missing_slices == "empty" else _lacking(masks, drawn, where)
    if work.rules.missing_slices == "empty":
        return [f"{where}: {missing} slices between contours were left empty on request"]
    if work.rules.missing_slices == "refuse":
        raise Refusal(
            "missing-contours",
            f"{where}: {missing} slices between slices with contours have none, such as {gaps[0][0] + 1} between "
            f"{gaps[0][0]} and {gaps[0][1]}; draw them, or say in `{READING_KEY}` of the datalist what they are: "
            '{"missing_slices": "fill"} interpolates the outlines, {"missing_slices": "empty"} takes gaps as they are',
        )
    spacing = [mm for other, mm in enumerate(work.image.geometry.spacing_mm) if other != axis]
    bare = 0
    for a, b in gaps:
        between = dict(_between(masks[a], masks[b], a, b, spacing))
        bare += sum(not mask.any() for mask in between.values())
        masks.update(between)
    notes = [f"{where}: {missing} slices between contours were filled on request, by the distances to both outlines"]
    return notes + [f"{where}: {bare} of them stay empty, since the outlines lie beside each other"] * bool(bare)


def _lacking(masks: Mapping[int, NDArray[np.bool_]], drawn: Sequence[int], where: str) -> list[str]:
    """A note on parts that lie over each other with one slice between that lacks them, where other parts have it."""
    from scipy.ndimage import label

    odd = []
    for k in drawn:
        before, after = masks.get(k - 1), masks.get(k + 1)
        if before is None or after is None or not (both := before & after & ~masks[k]).any():
            continue
        parts, _ = label(before & after)
        held = set(np.unique(parts[masks[k]]).tolist())
        odd += [k] * any(number not in held for number in np.unique(parts[both]).tolist())
    shown = f"{len(odd)} slices, such as {odd[0]}," if len(odd) > 1 else f"slice {odd[0] if odd else 0}"
    return [f"{where}: {shown} lack a part that the slices on both sides have: is a contour missing?"] * bool(odd)


def _between(
    first: NDArray[np.bool_], second: NDArray[np.bool_], a: int, b: int, spacing_mm: Sequence[float]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Shape-based interpolation (Raya and Udupa 1990): inside is where the signed distances' mean is."""
    distances = [_signed_distance(mask, spacing_mm) for mask in (first, second)]
    for k in range(a + 1, b):
        share = (k - a) / (b - a)
        yield k, (1 - share) * distances[0] + share * distances[1] > 0


def _signed_distance(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Distance in mm to the outline, positive inside."""
    return np.asarray(edt.edt(mask, spacing_mm) - edt.edt(~mask, spacing_mm), dtype=np.float32)
