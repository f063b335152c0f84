"""Split the headers of DICOM files into stacks, each one volume, and judge each: usable, or refused and why.

Nothing is read here but headers, so an index can judge a hospital's archive, and the reader judges by the same rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medseg.errors import ReasonCode, Refusal
from medseg.geometry import SPACING_TOLERANCE_FRACTION, Geometry
from medseg.ingest import grids
from medseg.ingest.headers import Header
from medseg.ingest.limits import check_volume_size
from medseg.ingest.pseudonyms import uid_hash
from medseg.ingest.splitting import Part, separate_stacked

__all__ = ["Stack", "case_id_of_series", "split"]

_INTEGER_PIXELS: Final = 0x7FE00010
_CASE_DIGITS: Final = 12
_SAME_PLANE_DEGREES: Final = 30.0
_FILLS_A_GAP: Final = 0.3
_BROKEN: Final = ("truncated", "unreadable")

Conflict = tuple[ReasonCode, str]


@dataclass(frozen=True)
class Stack:
    """The slices of one volume, or of what was refused as one.

    Attributes
    ----------
    headers
        One per slice, sorted along the normal where the stack is sound; the frames of a multi-frame file each
        have a header of their own with ``frame`` set.
    geometry
        The grid in RAS+; ``None`` where there is no sound one.
    usable, reason, message
        The verdict.
    notes
        What is worth knowing about the volume, such as a gantry tilt or what it was split from.
    suffix
        ``""`` for the first stack of a series, ``"-2"``, ``"-3"`` for further ones.
    """

    headers: tuple[Header, ...]
    geometry: Geometry | None
    usable: bool
    reason: ReasonCode | None
    message: str
    notes: tuple[str, ...] = ()
    suffix: str = ""

    @property
    def case_id(self) -> str:
        """``series-`` and the first 12 hex digits of the SHA-256 of the SeriesInstanceUID, and the suffix."""
        first = self.headers[0]
        return case_id_of_series(first.series_uid_hash or first.sop_instance_hash or uid_hash(first.path)) + self.suffix

    @property
    def files(self) -> tuple[str, ...]:
        """The files in the order of the slices, each once."""
        return tuple(dict.fromkeys(header.path for header in self.headers))


def case_id_of_series(series_uid_hash: str) -> str:
    """The case id of the first stack of a series."""
    return f"series-{series_uid_hash[:_CASE_DIGITS]}"


def split(headers: Sequence[Header]) -> list[Stack]:
    """Split headers into stacks, in an order that does not depend on the order given.

    Parameters
    ----------
    headers
        Headers of any number of series and studies.

    Returns
    -------
    list of Stack
        Grouped by series; within a series the usable ones with the most slices first.
    """
    series: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        series[header.study_uid_hash, header.series_uid_hash or header.path].append(header)
    return [stack for key in sorted(series) for stack in _split_series(series[key])]


def _split_series(headers: list[Header]) -> list[Stack]:
    headers = sorted(headers, key=lambda h: (h.instance_number or 0, h.path))
    if len({header.person_hash for header in headers}) > 1:
        message = "files of different patients carry one SeriesInstanceUID; sort them apart or export them again"
        return [_refused(headers, "mixed-patients", message)]
    images = [header for header in headers if header.is_image]
    stacks = [_judge_other(group) for group in _grouped_by_class(h for h in headers if not h.is_image)]
    broken = [header for header in images if header.defect in _BROKEN]
    if broken:  # which stack its slice belongs to, nobody knows
        return _numbered([_refused(images, *_defect(broken[0], len(images))), *stacks])
    try:
        unique, notes = _without_copies(images)
    except Refusal as refusal:
        return _numbered([_refused(images, refusal.code, refusal.message), *stacks])
    slices = [slice_header for header in unique for slice_header in header.per_frame()]
    for group, conflict in _conflicts(_same_plane_groups(slices)):
        stacks += [_refused(group, *conflict)] if conflict else _judge_group(group, notes)
    return _numbered(stacks)


def _numbered(stacks: list[Stack]) -> list[Stack]:
    order = sorted(
        stacks, key=lambda s: (not s.usable, not s.headers[0].is_image, -len(s.headers))
    )  # stable: facts' order
    return [replace(stack, suffix=f"-{i + 1}" if i else "") for i, stack in enumerate(order)]


def _refused(headers: Iterable[Header], code: ReasonCode, message: str, notes: tuple[str, ...] = ()) -> Stack:
    return Stack(tuple(headers), None, False, code, message, notes)


def _grouped_by_class(headers: Iterable[Header]) -> list[list[Header]]:
    groups: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        groups[header.sop_class_uid].append(header)
    return list(groups.values())


def _judge_other(headers: list[Header]) -> Stack:
    modality = headers[0].modality or "no modality"
    message = f"a DICOM object that is not an image ({modality}); give the folder of the images it belongs to"
    return _refused(headers, "not-an-image", message)


def _without_copies(headers: list[Header]) -> tuple[list[Header], tuple[str, ...]]:
    """Drop second copies of an instance; two different images under one instance UID are refused."""
    kept: dict[str, Header] = {}
    for header in headers:
        known = kept.setdefault(header.sop_instance_hash or header.path, header)
        if known is not header and (known.position, known.grid) != (header.position, header.grid):
            raise Refusal(
                "duplicate-slices",
                "different images carry one SOPInstanceUID (0008,0018); export the series again from its source",
            )
    copies = len(headers) - len(kept)
    return list(kept.values()), (f"{copies} second copies of slices were left out",) if copies else ()


def _same_plane_groups(slices: list[Header]) -> list[list[Header]]:
    """Groups of one grid and one orientation, the largest first."""
    groups: list[list[Header]] = []
    for header in slices:
        for group in groups:
            if grids.same_grid(group[0], header) and grids.same_orientation(group[0], header):
                group.append(header)
                break
        else:
            groups.append([header])
    return sorted(groups, key=len, reverse=True)


def _conflicts(groups: list[list[Header]]) -> list[tuple[list[Header], Conflict | None]]:
    """Join to the largest group the slices of another grid or orientation that fill its gaps or continue it.

    Such slices belong to the same volume and contradict it; a localizer or a second stack does not fit in.
    """
    if len(groups) < 2 or any(h.position is None or h.orientation is None for group in groups for h in group[:1]):
        return [(group, None) for group in groups]
    main, rest, conflict = groups[0], [], None
    for other in groups[1:]:
        found = _conflict(main, other)
        if found is None:
            rest.append(other)
        else:
            main, conflict = [*main, *other], conflict or found
    return [(main, conflict), *((group, None) for group in rest)]


def _conflict(main: list[Header], other: list[Header]) -> Conflict | None:
    try:
        normal = grids.normal_of(main[0])
        angle = np.degrees(np.arccos(np.clip(normal @ grids.normal_of(other[0]), -1.0, 1.0)))
    except Refusal:
        return None
    if len(main) < 2 or angle > _SAME_PLANE_DEGREES or not _continues(main, other, normal):
        return None
    if grids.same_orientation(main[0], other[0]):
        message = "slices of one volume differ in rows, columns or PixelSpacing (0028,0030)"
        return "mixed-grid", f"{message}: {len(other)} of {len(main) + len(other)}; export the series again"
    message = "slices of one volume differ in ImageOrientationPatient (0020,0037)"
    return "mixed-orientation", f"{message}: {len(other)} of {len(main) + len(other)}; export the series again"


def _continues(main: list[Header], other: list[Header], normal: grids.Vectors) -> bool:
    """Whether both groups together make one evenly spaced stack, each slice at a place of its own."""
    inner = np.sort([_centre(header) @ normal for header in main])
    both = np.sort([*inner, *(_centre(header) @ normal for header in other)])
    gaps = np.diff(both)
    usual = float(np.median(np.diff(inner)))
    return usual > 0 and bool((np.abs(gaps - usual) <= _FILLS_A_GAP * usual).all())


def _centre(header: Header) -> grids.Vectors:
    row, column = grids.axes_of(header)
    down, across = header.pixel_spacing or (1.0, 1.0)
    half = row * across * (header.columns - 1) / 2 + column * down * (header.rows - 1) / 2
    return np.asarray(np.asarray(header.position) + half)


def _judge_group(headers: list[Header], notes: tuple[str, ...]) -> list[Stack]:
    """Judge slices of one grid and orientation; several volumes among them become several stacks."""
    try:
        _check_headers(headers)
        normal = grids.normal_of(headers[0])
    except Refusal as refusal:
        return [_refused(headers, refusal.code, refusal.message, notes)]
    ordered, distances = grids.sort_along_normal(headers, normal)
    places = grids.places(distances, ordered[0])
    if len(ordered) == 1 or places[-1] == len(ordered) - 1:
        return [_judge_stack(Part(tuple(ordered), ""), normal, notes)]
    parts = separate_stacked(ordered, places)
    if parts is None:
        count = len(ordered) - int(places[-1]) - 1
        message = (
            f"{count} of {len(ordered)} slices lie where another one lies, and no echo, b-value, time or acquisition "
            "number tells them apart; sort them into one series per volume"
        )
        return [_refused(ordered, "duplicate-slices", message, notes)]
    return [_judge_stack(part, normal, notes) for part in parts]


def _judge_stack(part: Part, normal: grids.Vectors, notes: tuple[str, ...]) -> Stack:
    headers = part.headers
    if part.because:
        notes = (*notes, f"one of several volumes in its series, told apart by {part.because}")
    try:
        _check_count(headers)
        geometry, found = grids.fit_geometry(headers, normal)
        check_volume_size(
            geometry.shape, 4 if any(_needs_float(h) for h in headers) else headers[0].bits_allocated // 8
        )
    except Refusal as refusal:
        return _refused(headers, refusal.code, refusal.message, notes)
    return Stack(headers, geometry, True, None, "", (*notes, *found))


def _needs_float(header: Header) -> bool:
    return header.rescale not in (None, (1.0, 0.0))


def _check_count(headers: Sequence[Header]) -> None:
    """Three slices prove their spacing; two need a header that agrees; one has none."""
    if len(headers) == 1:
        raise Refusal("single-slice", "a single slice is no volume (a localizer?); give the whole series")
    if len(headers) > 2:
        return
    distance = float(np.linalg.norm(np.subtract(headers[1].position, headers[0].position)))  # type: ignore[arg-type]
    declared = headers[0].spacing_between_slices_mm or headers[0].slice_thickness_mm
    if declared is None or abs(distance - declared) > SPACING_TOLERANCE_FRACTION * distance:
        raise Refusal(
            "not-3d",
            f"two slices {distance:.3f} mm apart, and no SpacingBetweenSlices or SliceThickness that confirms it "
            f"(found {declared}); give the whole series",
        )


def _check_headers(headers: Sequence[Header]) -> None:
    """Refuse what no reader may turn into a volume, whatever its geometry."""
    for header in headers:
        if header.defect is not None:
            raise Refusal(*_defect(header, len(headers)))
        _check_pixels(header)
        if header.position is None:
            raise Refusal("no-geometry", "ImagePositionPatient (0020,0032) is absent; export the original images")


def _defect(header: Header, count: int) -> Conflict:
    return header.defect or "unreadable", f"at least one of {count} slices is unusable: {header.defect_message}"


def _check_pixels(header: Header) -> None:
    if not header.pixel_tag:
        raise Refusal(
            "no-pixel-data", "there is no Pixel Data element (7FE0,0010); export the images, not only headers"
        )
    sound_bits = header.bits_allocated in (8, 16, 32) and 0 < header.bits_stored <= header.bits_allocated
    if header.pixel_tag != _INTEGER_PIXELS or not sound_bits:
        found = f"{header.bits_stored} bits stored in {header.bits_allocated}"
        raise Refusal("undecodable", f"pixels have {found}, expected integers of 8, 16 or 32 bits")
    if header.samples_per_pixel != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise Refusal("colour", f"the images are in colour ({header.photometric}); give the original grey-scale series")
    if "MOSAIC" in header.image_type:
        raise Refusal(
            "mosaic", "Siemens mosaic: many slices tiled in one image; convert it first, for example by dcm2niix"
        )
    if min(header.grid) < 1:
        raise Refusal(
            "no-pixel-data", f"Rows and Columns are {header.rows} and {header.columns}; export the images again"
        )
    if header.number_of_frames > 1 and header.frame is None:
        raise Refusal("no-geometry", "several frames without per-frame positions; export an enhanced or classic series")
    _check_length(header)


def _check_length(header: Header) -> None:
    check_volume_size((header.rows, header.columns, header.number_of_frames), header.bits_allocated // 8)
    if header.pixel_length is None:
        return
    expected = header.rows * header.columns * header.number_of_frames * header.bits_allocated // 8
    deflated = header.transfer_syntax.endswith(".99")
    there = header.pixel_length if deflated else min(header.pixel_length, header.size - header.pixel_offset)
    if there < expected:
        raise Refusal(
            "truncated",
            f"{there} bytes of pixel data where {header.rows}×{header.columns}×{header.number_of_frames} pixels "
            f"need {expected}; copy the file again from its source",
        )
