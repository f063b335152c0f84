"""Split the headers of DICOM files into stacks, each one volume, and judge each: usable, or refused and why.

Nothing is read but headers (and the pixels of what seem to be copies): index and reader judge by the same rules.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medseg.errors import ReasonCode, Refusal
from medseg.geometry import SPACING_TOLERANCE_FRACTION, Geometry
from medseg.ingest import slice_geometry as grids
from medseg.ingest.copies import without_copies, without_equal_images
from medseg.ingest.dicom_header import BROKEN, Header
from medseg.ingest.dicom_tags import is_projection_class
from medseg.ingest.multiframe import check_concatenations
from medseg.ingest.pixels import check_pixels
from medseg.ingest.pseudonyms import uid_hash
from medseg.ingest.record import SeriesRecord, case_id_of_series, grid_of
from medseg.ingest.splitting import mixture_in, separate_stacked
from medseg.resources import check_volume_size

_BESIDE_IMAGES: Final = ("not-an-image", "single-slice")
"""Refused for what they are, not for damage: they may lie beside the one volume that is wanted."""
_SAME_PLANE_DEGREES: Final = 30.0
_FILLS_A_GAP: Final = 0.3


@dataclass(frozen=True)
class Stack:
    """The slices of one volume, or of what was refused as one."""

    headers: tuple[Header, ...]
    """One per slice, sorted along the normal where the stack is sound; the frames of a multi-frame file each have a
    header of their own with ``frame`` set."""
    geometry: Geometry | None  # the grid in RAS+; ``None`` for what is refused
    reason: ReasonCode | None = None
    message: str = ""
    """``reason``, ``message``: why it is refused."""
    notes: tuple[str, ...] = ()
    """What is worth knowing about the volume, such as a gantry tilt or what it was split from."""
    suffix: str = ""  # ``""`` for the first stack of a series, ``"-2"``, ``"-3"`` for further ones

    @property
    def usable(self) -> bool:
        """Whether it is one sound volume."""
        return self.geometry is not None

    @property
    def case_id(self) -> str:
        """``series-`` and the first 12 hex digits of the SHA-256 of the SeriesInstanceUID, and the suffix."""
        first = self.headers[0]
        uid = first.series_uid_hash or first.sop_instance_hash or uid_hash(first.path)
        return f"{case_id_of_series(uid)}{self.suffix}"

    @property
    def files(self) -> tuple[str, ...]:
        """The files in the order of the slices, each once."""
        return tuple(dict.fromkeys(header.path for header in self.headers))

    @property
    def is_volume(self) -> bool:
        """Whether it is a volume, or was meant as one: no report, single slice, dose report or screen shot."""
        return self.usable or not (self.reason in _BESIDE_IMAGES or self._is_picture())

    @property
    def is_broken(self) -> bool:
        """Whether a defect hides which stack one of its slices belongs to."""
        return self.reason in BROKEN

    def _is_picture(self) -> bool:
        """An image without a place in the patient, whatever else is wrong with it."""
        if self.is_broken or any(header.position is not None for header in self.headers):
            return False
        return len(self.headers) == 1 or all(is_projection_class(header.sop_class_uid) for header in self.headers)


def record_of_stack(stack: Stack, source: str | None = None) -> SeriesRecord:
    """The record of one stack of DICOM slices; ``source`` defaults to the folder that holds its files."""
    first = stack.headers[0]
    return SeriesRecord(
        case_id=stack.case_id,
        source=os.path.dirname(first.path) if source is None else source,  # noqa: PTH120 - bytes of odd names survive
        kind="dicom",
        files=stack.files,
        series_uid_hash=first.series_uid_hash,
        study_uid_hash=first.study_uid_hash,
        patient_hash=first.patient_hash,
        modality=first.modality,
        description=first.description,
        transfer_syntax=first.transfer_syntax,
        usable=stack.usable,
        reason=stack.reason,
        message=stack.message,
        notes=stack.notes,
        is_volume=stack.is_volume,
        series_number=first.series_number,
        contrast=first.contrast_agent,
        **grid_of(stack.geometry),
    )


def split(headers: Sequence[Header]) -> list[Stack]:
    """Split headers of any series and studies into stacks, in an order that does not depend on the order given.

    Grouped by series; within a series the usable ones with the most slices first.
    """
    series: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        series[header.study_uid_hash, header.series_uid_hash or header.path].append(header)
    return [stack for key in sorted(series) for stack in _split_series(series[key])]


def _split_series(headers: list[Header]) -> list[Stack]:
    headers = sorted(headers, key=lambda h: (h.instance_number or 0, h.path))
    try:
        spellings = _check_patient(headers)
    except Refusal as refusal:
        return [_refused(headers, refusal)]
    images = [header for header in headers if header.is_image]
    stacks = _other_objects(header for header in headers if not header.is_image)
    try:
        for header in images:
            if header.defect in BROKEN:  # which stack its slice belongs to, nobody knows
                raise _defect(header, len(images))
        unique, copies = without_copies(images)
        parts = [(h.concatenation, h.number_of_frames) for h in unique if h.concatenation is not None]
        notes = (*spellings, *copies, *check_concatenations(parts))
    except Refusal as refusal:
        return _numbered([_refused(images, refusal), *stacks])
    slices = [slice_header for header in unique for slice_header in header.per_frame()]
    for group, conflict in _conflicts(_same_plane_groups(slices)):
        stacks += [_refused(group, conflict)] if conflict else _judge_group(group, notes)
    return _numbered(stacks)


def _check_patient(headers: Sequence[Header]) -> tuple[str, ...]:
    """PatientID decides who it is; where one is absent, the name does. A note where names differ."""
    ids, names = {header.id_hash for header in headers}, {header.name_hash for header in headers}
    persons = ids - {""} if "" not in ids or len(ids) > 2 else names
    if not ids - {""}:
        persons = {header.patient_hash for header in headers}
    if len(persons) > 1:
        message = "files of different patients carry one SeriesInstanceUID; sort them apart or export them again"
        raise Refusal("mixed-patients", message)
    return (f"the patient's name is spelt in {len(names)} ways under one PatientID",) if len(names) > 1 else ()


def _numbered(stacks: list[Stack]) -> list[Stack]:
    # Stable: those of equal rank stay in the order of what tells them apart.
    order = sorted(stacks, key=lambda s: (not s.usable, not s.headers[0].is_image, -len(s.headers)))
    return [replace(stack, suffix=f"-{i + 1}" if i else "") for i, stack in enumerate(order)]


def _refused(headers: Iterable[Header], refusal: Refusal, notes: tuple[str, ...] = ()) -> Stack:
    return Stack(tuple(headers), None, refusal.code, refusal.message, notes)


def _other_objects(headers: Iterable[Header]) -> list[Stack]:
    groups: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        groups[header.sop_class_uid].append(header)
    what, remedy = "a DICOM object that is not an image", "give the folder of the images it belongs to"
    return [
        _refused(group, Refusal("not-an-image", f"{what} ({group[0].modality or 'no modality'}); {remedy}"))
        for group in groups.values()
    ]


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


def _conflicts(groups: list[list[Header]]) -> list[tuple[list[Header], Refusal | None]]:
    """Join to the largest group the slices of another grid or orientation that fill its gaps or continue it.

    Such slices belong to the same volume and contradict it; a localizer or a second stack does not fit in.
    """
    if not groups:
        return []
    main, rest, conflict = groups[0], [], None
    for other in groups[1:]:
        found = _conflict(main, other)
        if found is None:
            rest.append(other)
        else:
            main, conflict = [*main, *other], conflict or found
    return [(main, conflict), *((group, None) for group in rest)]


def _conflict(main: list[Header], other: list[Header]) -> Refusal | None:
    if len(main) < 2 or main[0].position is None or main[0].orientation is None:
        return None
    share = f"slices of one volume: {len(other)} of {len(main) + len(other)}; export the series again"
    if any(header.position is None for header in other):
        # Images of the volume's own kind whose place nobody knows; a screen shot or a report is of another kind.
        kinds = {(h.sop_class_uid, h.modality, h.grid, h.image_type, h.photometric) for h in (main[0], other[0])}
        absent = Refusal("no-geometry", f"ImagePositionPatient (0020,0032) is absent in {share}")
        return absent if len(kinds) == 1 else None
    orientation = other[0].orientation or main[0].orientation
    spacing = other[0].pixel_spacing or main[0].pixel_spacing
    placed = [header._replace(orientation=orientation, pixel_spacing=spacing) for header in other]
    if not _continues(main, placed):
        return None
    if placed != other:
        missing = "ImageOrientationPatient (0020,0037) or PixelSpacing (0028,0030) is absent in"
        return Refusal("no-geometry", f"{missing} {share}")
    if grids.same_orientation(main[0], other[0]):
        return Refusal("mixed-grid", f"rows, columns or PixelSpacing (0028,0030) differ between {share}")
    return Refusal("mixed-orientation", f"ImageOrientationPatient (0020,0037) differs between {share}")


def _continues(main: list[Header], other: list[Header]) -> bool:
    """Whether both groups together make one evenly spaced stack, each slice at a place of its own."""
    try:
        normal = grids.normal_of(main[0])
        cosine = float(normal @ grids.normal_of(other[0]))
    except Refusal:
        return False
    if cosine < np.cos(np.radians(_SAME_PLANE_DEGREES)):
        return False
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
        ordered = grids.sort_along_normal(headers, normal)
        ordered, copies = without_equal_images(ordered, grids.places(ordered, normal))
    except Refusal as refusal:
        return [_refused(headers, refusal, notes)]
    notes, places = (*notes, *copies), grids.places(ordered, normal)
    doubles = len(ordered) - int(places[-1]) - 1
    parts = separate_stacked(ordered, places) if doubles else None
    if parts is not None:
        told_apart = "one of several volumes in its series, told apart by"
        return [_judge_stack(part, normal, (*notes, f"{told_apart} {because}")) for part, because in parts]
    if not doubles or len(_frames_of_reference(ordered)) > 1:
        return [_judge_stack(ordered, normal, notes)]
    message = (
        f"{doubles} of {len(ordered)} slices lie where another one lies, and no echo, b-value, time or acquisition "
        "number tells them apart; sort them into one series per volume"
    )
    return [_refused(ordered, Refusal("duplicate-slices", message), notes)]


def _judge_stack(headers: Sequence[Header], normal: grids.Vectors, notes: tuple[str, ...]) -> Stack:
    try:
        _check_alike(headers)
        _check_count(headers)
        geometry, found = grids.fit_geometry(headers, normal)
        needs_float = any(header.rescale not in (None, (1.0, 0.0)) for header in headers)
        check_volume_size(geometry.shape, 4 if needs_float else headers[0].bits_allocated // 8)
    except Refusal as refusal:
        return _refused(headers, refusal, notes)
    return Stack(tuple(headers), geometry, notes=(*notes, *_remarks(headers), *found))


def _check_alike(headers: Sequence[Header]) -> None:
    """The slices of one volume have one frame of reference, one contrast, and all a rescale or none.

    Source: PS3.3 C.7.4.1 (frame of reference), C.8.2.1 and C.7.6.16 (rescale).
    """
    frames = _frames_of_reference(headers)
    if len(frames) > 1:
        raise Refusal(
            "several-volumes",
            f"the slices name {len(frames)} frames of reference (0020,0052), so that their positions are not "
            "comparable; sort them apart, or export the series again",
        )
    without = sum(header.rescale is None for header in headers)
    if 0 < without < len(headers):
        raise Refusal(
            "mixed-rescale",
            f"{without} of {len(headers)} slices have no Rescale Slope and Intercept (0028,1053 and 0028,1052), the "
            "others do: their values are in different units; export the series again",
        )
    mixture = mixture_in(headers)
    if mixture:
        raise Refusal(
            "mixed-contrast",
            f"slices of one volume differ in {mixture}; sort them into one series per contrast, or export them again",
        )


def _frames_of_reference(headers: Sequence[Header]) -> set[str]:
    return {header.frame_of_reference_hash for header in headers} - {""}


def _remarks(headers: Sequence[Header]) -> tuple[str, ...]:
    """What is worth knowing of single headers, each once."""
    notes = list(dict.fromkeys(remark for header in headers for remark in header.remarks))
    first = headers[0]
    unit = first.attributes.get("rescale type", "")
    if first.modality == "CT" and first.rescale is None:
        notes.append("no rescale in the header: values are as stored, their unit is unknown and may not be HU")
    elif first.modality == "CT" and unit not in ("", "HU"):
        notes.append(f"the header names the unit {unit[:16]} (0028,1054), not HU")
    unnamed = sum(not header.frame_of_reference_hash for header in headers)
    if 0 < unnamed < len(headers):
        notes.append(f"{unnamed} slices name no frame of reference; they were taken to lie in that of the others")
    return tuple(notes)


def _check_count(headers: Sequence[Header]) -> None:
    """Three slices prove their spacing; two need a header that agrees; one has none."""
    if len(headers) == 1:
        raise Refusal("single-slice", "a single slice is no volume (a localizer?); give the whole series")
    if len(headers) > 2:
        return
    distance = float(np.linalg.norm(np.subtract(headers[1].position, headers[0].position)))  # type: ignore[arg-type]
    declared = headers[0].spacing_between_slices_mm or headers[0].slice_thickness_mm
    rounding = 2 * float(grids.half_units(headers).max())
    if declared is None or abs(distance - declared) > SPACING_TOLERANCE_FRACTION * distance + min(rounding, 0.1):
        raise Refusal(
            "not-3d",
            f"two slices {distance:.3f} mm apart, and no SpacingBetweenSlices or SliceThickness that confirms it "
            f"(found {declared}); give the whole series",
        )


def _check_headers(headers: Sequence[Header]) -> None:
    """Refuse what no reader may turn into a volume, whatever its geometry."""
    for header in headers:
        if not header.pixel_tag and header.defect not in BROKEN:
            message = "there is no Pixel Data element (7FE0,0010); export the images, not only headers"
            raise Refusal("no-pixel-data", message)
        if header.defect is not None:
            raise _defect(header, len(headers))
        check_pixels(header)
        if header.position is None:
            raise Refusal("no-geometry", "ImagePositionPatient (0020,0032) is absent; export the original images")


def _defect(header: Header, count: int) -> Refusal:
    message = f"at least one of {count} slices is unusable: {header.defect_message}"
    return Refusal(header.defect or "unreadable", message)
