"""From slices to a grid: sort along the normal, fit the line of positions, judge what deviates from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import (
    ANGLE_TOLERANCE_DEGREES,
    POSITION_TOLERANCE_MM,
    SPACING_TOLERANCE_FRACTION,
    Geometry,
    lps_to_ras,
)
from medseg.ingest.dicom_header import Header
from medseg.ingest.pixels import padding_outside

Vectors = NDArray[np.float64]

COSINE_TOLERANCE: Final = 1e-3
_PIXEL_SPACING_TOLERANCE: Final = 1e-3
_LARGEST_TILT_DEGREES: Final = 45.0
_LONGEST_RUN_OF_GAPS: Final = 2
_LARGEST_GAP_RATIO: Final = 1.6
"""Between the largest and the smallest gap, where rounding explains both: a missing slice doubles one."""


def axes_of(header: Header) -> tuple[Vectors, Vectors]:
    """Directions along a row and along a column of a slice, as written in its header (LPS)."""
    if header.orientation is None:
        raise Refusal("no-geometry", "ImageOrientationPatient (0020,0037) is absent; export the original images")
    axes = np.array(header.orientation, dtype=np.float64)
    return axes[:3], axes[3:]


def normal_of(header: Header) -> Vectors:
    """Unit normal of a slice in DICOM's LPS frame; ``no-geometry`` if its axes are not perpendicular unit vectors."""
    row, column = axes_of(header)
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > COSINE_TOLERANCE or abs(row @ column) > COSINE_TOLERANCE:
        raise Refusal(
            "no-geometry",
            "ImageOrientationPatient (0020,0037) is not two perpendicular unit vectors; export the original images",
        )
    normal = np.cross(row, column)
    return np.asarray(normal / np.linalg.norm(normal))


def same_orientation(one: Header, other: Header) -> bool:
    """Whether two slices have the same direction cosines, but for rounding noise."""
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return max(abs(a - b) for a, b in zip(one.orientation, other.orientation, strict=True)) <= COSINE_TOLERANCE


def same_grid(one: Header, other: Header) -> bool:
    """Whether two slices have the same size and pixel spacing, but for rounding noise."""
    if one.grid != other.grid:
        return False
    if one.pixel_spacing is None or other.pixel_spacing is None:
        return one.pixel_spacing is other.pixel_spacing
    pairs = zip(one.pixel_spacing, other.pixel_spacing, strict=True)
    return all(abs(a - b) <= _PIXEL_SPACING_TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)


def sort_along_normal(headers: Sequence[Header], normal: Vectors) -> list[Header]:
    """Headers in the order of their position along the normal.

    Equal positions keep the order of instance numbers, so that the result does not depend on the order given.
    """
    keys = [(_distance(h, normal), h.instance_number or 0, h.path, h.frame or 0) for h in headers]
    return [headers[i] for i in sorted(range(len(headers)), key=keys.__getitem__)]


def _distance(header: Header, normal: Vectors) -> float:
    return float(np.dot(header.position or (np.nan,) * 3, normal))


def places(ordered: Sequence[Header], normal: Vectors) -> NDArray[np.int64]:
    """Number the distinct places of sorted slices: those at one place get one number.

    Positions closer than 0.05 mm, or than a tenth of a pixel where pixels are small, are one place.
    """
    tolerance = min(POSITION_TOLERANCE_MM, 0.1 * min(ordered[0].pixel_spacing or (1.0,)))
    distances = [_distance(header, normal) for header in ordered]
    return np.concatenate([[0], np.cumsum(np.diff(distances) > tolerance)]).astype(np.int64)


def half_units(headers: Sequence[Header]) -> Vectors:
    """Half a unit of the last digit of the positions as written, in mm for each of x, y and z.

    The finest of all numbers counts, since writers cut off zeros. A coordinate that is the same whole number in all
    slices, such as ``-20.0``, tells nothing of how the writer rounds.
    """
    decimals = np.array([header.position_decimals for header in headers])
    positions = np.array([header.position for header in headers])
    if decimals.shape != positions.shape:
        return np.zeros(3)
    whole = (np.ptp(positions, axis=0) == 0) & (positions[0] == np.rint(positions[0])) & (decimals.max(axis=0) <= 1)
    finest = int(decimals.max(axis=0)[~whole].max(initial=0))
    return np.full(3, 0.5 * 10.0**-finest)


def fit_geometry(headers: Sequence[Header], normal: Vectors) -> tuple[Geometry, tuple[str, ...]]:
    """The grid of two or more sorted slices of one grid and orientation, no two at one place, with notes.

    The affine puts the first and the last slice exactly where their headers say; every slice between must lie
    within max(0.05 mm, 2 % of the spacing) of its regular place. Where positions were written with few digits, the
    grid that fits all best is taken, if it explains each within 0.05 mm and half a unit of the last digit.
    Refused are ``missing-slices``, ``non-uniform-spacing``, ``no-geometry`` and ``singular-affine``. Source: DICOM
    PS3.3 C.7.6.2.1.1.
    """
    first = headers[0]
    if first.pixel_spacing is None or min(first.pixel_spacing) <= 0:
        raise Refusal("no-geometry", "PixelSpacing (0028,0030) is absent or not positive; export the original images")
    positions = np.array([header.position for header in headers], dtype=np.float64)
    origin, step, rounded = _regular_places(positions, normal, half_units(headers))
    tilt_degrees = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1.0, 1.0))))
    if tilt_degrees > _LARGEST_TILT_DEGREES:
        raise Refusal(
            "no-geometry",
            f"the slices' positions run {tilt_degrees:.0f}° off their normal, no gantry tilts more than 30°; "
            "check ImagePositionPatient (0020,0032)",
        )
    row, column = axes_of(first)
    affine = np.eye(4)
    along_i = row / np.linalg.norm(row) * first.pixel_spacing[1]
    along_j = column / np.linalg.norm(column) * first.pixel_spacing[0]
    affine[:3] = np.column_stack([along_i, along_j, step, origin])
    geometry = Geometry((first.columns, first.rows, len(headers)), lps_to_ras(affine))
    return geometry, (*rounded, *_notes(headers, float(np.linalg.norm(step)), tilt_degrees))


def _regular_places(positions: Vectors, normal: Vectors, half: Vectors) -> tuple[Vectors, Vectors, tuple[str, ...]]:
    """Place of the first slice, the step between slices, and a note where rounded positions were fitted."""
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    spacing = float(np.linalg.norm(step))
    tolerance = min(max(POSITION_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION * spacing), spacing / 4)
    numbers = np.arange(len(positions))[:, None]
    residual = float(np.linalg.norm(positions - positions[0] - numbers * step, axis=1).max())
    if residual <= tolerance:
        return positions[0], step, ()
    # Two decimals and more round by less than the tolerance: they explain nothing.
    coarse = half.max() >= POSITION_TOLERANCE_MM
    fitted = _explained(positions, np.minimum(POSITION_TOLERANCE_MM + half, spacing / 4)) if coarse else None
    gaps = np.diff(positions @ normal)
    if fitted is not None and gaps.max() <= _LARGEST_GAP_RATIO * gaps.min():
        off = float(np.abs(positions - fitted[0] - numbers * fitted[1]).max())
        note = f"positions are written to {2 * half.max():g} mm: the regular grid that explains them is taken"
        return *fitted, (f"{note}, at most {off:.3f} mm off",)
    raise _uneven(positions @ normal, residual, tolerance, float(half.max()))


def _explained(positions: Vectors, tolerance: Vectors) -> tuple[Vectors, Vectors] | None:
    """Origin and step of a regular grid that lies within the tolerance of all positions; ``None`` if there is none.

    A line with step b meets all intervals x_k ± t exactly if b (j - i) ≤ x_j - x_i + 2 t for all pairs. Of the steps
    that do, the one nearest to the least-squares fit is taken.
    """
    count = len(positions)
    least, most = np.full(3, -np.inf), np.full(3, np.inf)
    for lag in range(1, count):
        apart = positions[lag:] - positions[:-lag]
        least = np.maximum(least, (apart.max(axis=0) - 2 * tolerance) / lag)
        most = np.minimum(most, (apart.min(axis=0) + 2 * tolerance) / lag)
    if (least > most + 1e-9).any():
        return None
    centred = np.arange(count)[:, None] - (count - 1) / 2
    step = np.clip((centred * positions).sum(axis=0) / (centred**2).sum(), least, np.maximum(least, most))
    rest = positions - np.arange(count)[:, None] * step
    return (rest.max(axis=0) + rest.min(axis=0)) / 2, step


def _uneven(distances: Vectors, residual: float, tolerance: float, half_mm: float) -> Refusal:
    """Why positions that no regular grid explains are refused."""
    gaps = np.diff(distances)
    # The usual distance: the median of the gaps that are not multiples of the smallest.
    usual = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    multiples = np.rint(gaps / usual).astype(int)
    usual = float(gaps.sum() / multiples.sum())
    rounding = min(2 * half_mm, usual / 8)
    exact = (
        np.abs(gaps - multiples * usual)
        <= np.maximum(POSITION_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION * gaps) + rounding
    )
    if exact.all() and _is_incomplete(multiples):
        where = ", ".join(f"{m - 1} after slice {i + 1}" for i, m in enumerate(multiples.tolist()) if m > 1)
        return Refusal(
            "missing-slices",
            f"slices are missing ({where}) at a spacing of {usual:.3f} mm; copy the whole series from its source",
        )
    found = f"{gaps.min():.3f} to {gaps.max():.3f} mm apart" if np.ptp(gaps) > tolerance else "not on one line"
    return Refusal(
        "non-uniform-spacing",
        f"slices are {found}, up to {residual:.3f} mm off their regular place, expected at most {tolerance:.3f} mm; "
        "resample on request (allow_resample) or use an evenly spaced reconstruction",
    )


def _is_incomplete(multiples: NDArray[np.int_]) -> bool:
    """Tell a stack that lost slices (few, isolated gaps) from one whose spacing changes for good (a run of them)."""
    runs = [len(list(run)) for is_gap, run in groupby(multiples > 1) if is_gap]
    return 0 < sum(runs) < (multiples == 1).sum() and max(runs) <= _LONGEST_RUN_OF_GAPS


def _notes(headers: Sequence[Header], spacing_mm: float, tilt_degrees: float) -> tuple[str, ...]:
    notes = []
    thickness = headers[0].slice_thickness_mm
    if tilt_degrees > ANGLE_TOLERANCE_DEGREES:
        notes.append(f"gantry tilt of {tilt_degrees:.2f}°: the affine is sheared, exactly as acquired")
    if thickness and spacing_mm > 1.1 * thickness:
        notes.append(f"gaps between slices: spacing {spacing_mm:.2f} mm, thickness {thickness:.2f} mm")
    if any(header.photometric == "MONOCHROME1" for header in headers):
        notes.append("MONOCHROME1: values are as stored, low ones are meant to be shown bright")
    outside = next((header for header in headers if padding_outside(header) is not None), None)
    if outside is not None:
        notes.append(
            f"the padding value {outside.padding[0]} does not fit into {outside.bits_stored} stored bits: pixels "
            "outside the field of view hold the smallest stored value instead"
        )
    elif headers[0].padding:
        notes.append(f"pixels outside the field of view hold the padding value {headers[0].padding[0]}")
    return tuple(notes)
