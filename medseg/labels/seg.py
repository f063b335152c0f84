"""DICOM Segmentation (PS3.3, A.51) as a label map: each frame placed by its own position, read one at a time.

**Rules.** BINARY and LABELMAP count as they are; of FRACTIONAL what reaches a share of MaximumFractionalValue (half,
unless asked otherwise) is inside, and that is noted. Frames come in any order; a place without a frame is empty. Frames
must be slices of the image's grid, rows and columns along two of its axes, within a tenth of a voxel; they may show a
part of it. On another grid of the same frame of reference, or where only every second slice has a frame, the nearest
voxel's label is taken, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.dicom_elements import BIG_ENDIAN, DEFLATED, NATIVE
from medseg.ingest.dicom_header import Header
from medseg.labels.canvas import Canvas, Painted, Structure, structures_by_name
from medseg.labels.dicom_objects import check_belongs, hashed, items_of, read_object, well_formed
from medseg.labels.frames import FramePlace, GridPlaces, grid_of_frames, nearest
from medseg.labels.image_grid import ImageGrid
from medseg.labels.rules import ReadingRules, plain_name
from medseg.labels.scheme import LabelScheme, listed
from medseg.resources import check_volume_size

_LOSSY: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
_ROUNDING: Final = 1e-9
"""Of the largest fractional value: 0.55 × 100 is more than 55 in floating point."""


@dataclass(frozen=True)
class SegFrame(FramePlace):
    """A frame and the segment that it shows; 0 where it shows all, as in a LABELMAP."""

    segment: int


@dataclass(frozen=True)
class SegObject:
    """A segmentation taken apart, its pixels still in the file."""

    name: str
    header: Header
    dataset: Dataset
    kind: str
    segments: dict[int, str]  # label by number
    frames: tuple[SegFrame, ...]
    series: frozenset[str]
    frame_of_reference: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    def grid(self) -> Geometry:
        """The smallest regular grid that holds all frames; slices between them are empty.

        Raises ``Refusal``: ``no-geometry`` if frames do not lie on one.
        """
        return grid_of_frames(self.frames, self.shape, self.spacing_mm, self.name)

    @property
    def background(self) -> frozenset[int]:
        """Numbers that mean no segment: 0, and the padding of a LABELMAP (PS3.3, C.8.20.2)."""
        padding = self.dataset.get("PixelPaddingValue") if self.kind == "LABELMAP" else None
        return frozenset({0} if padding is None else {0, int(padding)})

    @property
    def structures(self) -> dict[int, str]:
        """Label by number of what is segmented."""
        return {number: label for number, label in self.segments.items() if number not in self.background}

    @property
    def spacing_mm(self) -> float | None:
        """Distance of slices as the object states it, else their thickness."""
        return self.spacing_between_mm or self.thickness_mm

    @property
    def spacing_between_mm(self) -> float | None:
        """Distance of slices, if the object states it."""
        return self._measured("SpacingBetweenSlices")

    @property
    def thickness_mm(self) -> float | None:
        """Thickness of slices, if the object states it."""
        return self._measured("SliceThickness")

    def _measured(self, keyword: str) -> float | None:
        shared = (self.dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        with well_formed(self.name):
            measures = _group(self.dataset.PerFrameFunctionalGroupsSequence[0], shared, "PixelMeasuresSequence", 1)
            stated = measures.get(keyword)
            return abs(float(stated)) if stated else None


def open_seg(header: Header, name: str) -> SegObject:
    """Take a segmentation apart and check that it agrees with itself.

    Raises ``Refusal``: ``malformed-object``, ``truncated``, ``undecodable``, ``no-geometry``, ``too-large``.
    """
    dataset = read_object(header, name)
    _refuse_part(dataset, name)
    with well_formed(name):
        kind = str(dataset.get("SegmentationType") or ("LABELMAP" if header.sop_class_uid.endswith(".7") else ""))
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise ValueError(f"Segmentation Type is {kind!r}, expected BINARY, FRACTIONAL or LABELMAP")
        _check_pixels(header, dataset, kind, name)
        segments = _segments(dataset)
        frames = tuple(_frames(dataset, kind, segments, name))
        series = frozenset(
            hashed(item.get("SeriesInstanceUID")) for item in dataset.get("ReferencedSeriesSequence", [])
        )
        frame_of_reference = hashed(dataset.get("FrameOfReferenceUID"))
    return SegObject(name, header, dataset, kind, segments, frames, series, frame_of_reference)


def _refuse_part(dataset: Dataset, name: str) -> None:
    parts = dataset.get("InConcatenationTotalNumber")
    if dataset.get("ConcatenationUID") and parts != 1:
        raise Refusal(
            "malformed-object",
            f"{name} is part {dataset.get('InConcatenationNumber', '?')} of {parts or 'several'} of a segmentation in "
            "pieces (a concatenation), expected a whole one: the other frames lie in other files; export it in one",
        )


def _check_pixels(header: Header, dataset: Dataset, kind: str, name: str) -> None:
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    bits = int(dataset.BitsAllocated)
    allowed = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}[kind]
    if min(rows, columns, count) < 1 or int(dataset.get("SamplesPerPixel", 1)) != 1 or bits not in allowed:
        raise ValueError(
            f"{count} frames of {rows}×{columns} pixels of {bits} bits, expected {listed(allowed)} bits ({kind})"
        )
    check_volume_size((rows, columns), 2)
    if kind == "LABELMAP" and (
        header.transfer_syntax in _LOSSY or str(dataset.get("LossyImageCompression", "")) == "01"
    ):
        raise ValueError("a LABELMAP was compressed with loss, expected its segments' numbers as they were")
    if not header.pixel_tag:
        raise Refusal("no-pixel-data", f"{name} has no pixel data, expected the masks of its segments; export it again")
    needed = (rows * columns * count * bits + 7) // 8
    found = header.pixel_length if header.transfer_syntax == DEFLATED else header.available_bytes
    if header.pixel_length is not None and (found or 0) < needed:
        raise Refusal(
            "truncated",
            f"{name} has {found} bytes of pixel data, its {count} frames of {rows}×{columns} pixels need {needed}; "
            "copy it again from its source",
        )


def _segments(dataset: Dataset) -> dict[int, str]:
    segments: dict[int, str] = {}
    for item in items_of(dataset, "SegmentSequence"):
        number = int(item.SegmentNumber)
        if number in segments:
            raise ValueError(f"two segments have the number {number}")
        label = str(item.get("SegmentLabel") or "").strip()
        if number and not label:
            raise ValueError(f"segment {number} has no Segment Label")
        segments[number] = label
    if not set(segments) - {0}:
        raise ValueError("Segment Sequence names no segment")
    return segments


def _frames(dataset: Dataset, kind: str, segments: dict[int, str], name: str) -> Iterator[SegFrame]:
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != int(dataset.NumberOfFrames):
        raise ValueError(f"{len(per_frame)} per-frame functional groups for {int(dataset.NumberOfFrames)} frames")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if not any("PlanePositionSequence" in group for group in (*per_frame[:1], shared)):
        raise Refusal("no-geometry", f"{name} has no place in the patient: it was drawn on a projection or a slide")
    for number, own in enumerate(per_frame, start=1):
        position, orientation, measures = (
            _group(own, shared, keyword, number)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        origin = np.array(position.ImagePositionPatient, dtype=np.float64)
        cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        row_mm, column_mm = (float(value) for value in measures.PixelSpacing)
        steps = cosines * np.array([[column_mm], [row_mm]])
        if origin.shape != (3,) or not (np.isfinite(origin).all() and np.isfinite(steps).all()):
            raise ValueError(f"frame {number} has no place: {origin.tolist()}, {cosines.tolist()}")
        if min(row_mm, column_mm) <= 0 or np.abs(cosines @ cosines.T - np.eye(2)).max() > 1e-2:
            raise ValueError(f"frame {number} has pixels of {row_mm}×{column_mm} mm along {cosines.tolist()}")
        segment = 0
        if kind != "LABELMAP":
            identification = _group(own, shared, "SegmentIdentificationSequence", number)
            segment = int(identification.ReferencedSegmentNumber)
            if segment not in segments or segment == 0:
                raise ValueError(f"frame {number} refers to segment {segment}, there are {sorted(segments)}")
        yield SegFrame(origin, steps, segment)


def _group(own: Dataset, shared: Dataset, keyword: str, number: int) -> Dataset:
    items = own.get(keyword) or shared.get(keyword)
    if not items:
        raise ValueError(f"frame {number} has no {keyword}, neither of its own nor shared")
    return items[0]


def _check_background(seg: SegObject, scheme: LabelScheme, rules: ReadingRules) -> None:
    """A segment of the background's number must not be called as a structure that is wanted."""
    means = {plain_name(name): target or "" for name, target in rules.names.items()}
    wanted = {plain_name(name) for name in scheme.structures.values()}
    for number in seg.background & set(seg.segments):
        label = seg.segments[number]
        if plain_name(means.get(plain_name(label), label)) in wanted:
            with well_formed(seg.name):
                raise ValueError(f"segment {number} is called {label!r}, but {number} is background or padding")


def read_seg(seg: SegObject, scheme: LabelScheme, rules: ReadingRules, image: ImageGrid | None) -> Painted:
    """The label map of a segmentation on its image's grid, or on its own where there is no image.

    Raises ``Refusal``: ``unmapped-structure``, ``overlapping-labels``, ``other-frame-of-reference``,
    ``geometry-mismatch``, ``malformed-object``, ``undecodable``.
    """
    notes = check_belongs(seg.name, seg.series, seg.frame_of_reference, image)
    _check_background(seg, scheme, rules)
    named = structures_by_name(seg.structures.values(), scheme, rules, seg.name)
    structures = {number: named[label] for number, label in seg.structures.items()}
    geometry = seg.grid() if image is None else image.geometry
    places = GridPlaces(geometry, seg.shape)
    misfit = places.misfit(seg.frames)
    if not misfit and image is not None and rules.missing_slices != "empty":
        misfit = places.sparse(seg.frames, seg.spacing_between_mm, seg.thickness_mm)
    if misfit and not rules.resample:
        raise Refusal(
            "geometry-mismatch",
            f"{seg.name} {misfit}; give the image it was drawn on, or ask for the nearest voxel's label "
            '(`label_reading` of the datalist, {"resample": true})'
            + (', or take empty slices as they are ({"missing_slices": "empty"})' if "slice" in misfit else ""),
        )
    own = seg.grid() if misfit else geometry
    canvas = Canvas(own.shape, scheme, rules, seg.name)
    notes += paint_seg(seg, canvas, own, structures, rules)
    array, more = canvas.labels()
    notes += more
    if misfit:
        array = nearest(array, own, geometry)
        notes += (f"{seg.name} {misfit}: the label of the nearest voxel was taken",)
    return Painted(array, geometry, notes)


def paint_seg(
    seg: SegObject, canvas: Canvas, geometry: Geometry, structures: dict[int, Structure | None], rules: ReadingRules
) -> tuple[str, ...]:
    """Paint the frames into a canvas on ``geometry``, on which they lie; notes on what was done."""
    outside = inside = 0
    places = GridPlaces(geometry, seg.shape)
    with well_formed(seg.name):
        if twice := len(seg.frames) - len({(frame.segment, places.origin(frame)) for frame in seg.frames}):
            raise ValueError(f"{twice} of {len(seg.frames)} frames show a segment twice at one place")
    pixels = _pixels(seg)
    for number, frame in enumerate(seg.frames, start=1):
        with well_formed(seg.name):
            values = next(pixels)
        found = places.view(canvas.array, frame)
        for segment, mask in _masks(seg, frame, values, number, rules):
            structure = structures.get(segment)
            count = int(np.count_nonzero(mask))
            if structure is None or not count:
                continue
            part = mask[:0] if found is None else mask[found[1]]
            seen = int(np.count_nonzero(part))
            inside, outside = inside + seen, outside + count - seen
            if found is not None and seen:
                canvas.paint(found[0], part, structure)
    if outside and not inside:
        raise Refusal(
            "outside-image",
            f"{seg.name}: all {outside} labelled pixels lie outside the image; pair it with its own image",
        )
    notes = (f"{outside} of {outside + inside} labelled pixels lie outside the image",) if outside else ()
    return notes + (_threshold_note(seg, rules) if seg.kind == "FRACTIONAL" else ())


def _threshold_note(seg: SegObject, rules: ReadingRules) -> tuple[str, ...]:
    most = int(seg.dataset.MaximumFractionalValue)
    return () if most == 1 else (f"fractional values from {rules.threshold:g} of the largest ({most}) are inside",)


def _masks(
    seg: SegObject, frame: SegFrame, values: NDArray[Any], number: int, rules: ReadingRules
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    if seg.kind == "LABELMAP":
        empty = seg.background
        for value in np.unique(values).tolist():
            if value not in seg.segments and value not in empty:
                with well_formed(seg.name):
                    raise ValueError(f"frame {number} holds {value}, there are the segments {sorted(seg.segments)}")
            if value not in empty:
                yield value, values == value
    elif seg.kind == "FRACTIONAL":
        with well_formed(seg.name):
            most = int(seg.dataset.MaximumFractionalValue)
            if most < 1 or values.max() > most:
                raise ValueError(f"frame {number} holds {values.max()}, Maximum Fractional Value is {most}")
        yield frame.segment, values >= max((rules.threshold - _ROUNDING) * most, 1.0)  # 0 is inside of nothing
    else:
        yield frame.segment, values != 0


def _pixels(seg: SegObject) -> Iterator[NDArray[Any]]:
    """Frames as (row, column), one in memory; native ones straight from the file."""
    rows, columns = seg.shape
    size, bits = rows * columns, int(seg.dataset.BitsAllocated)
    header = seg.header
    if header.transfer_syntax not in NATIVE:
        yield from _decoded(seg)
        return
    if header.transfer_syntax == DEFLATED:
        data: NDArray[np.uint8] = np.frombuffer(seg.dataset.PixelData, dtype=np.uint8)
    else:
        length = (size * bits * len(seg.frames) + 7) // 8
        data = np.memmap(header.path, dtype=np.uint8, mode="r", offset=header.pixel_offset, shape=(length,))
        if header.transfer_syntax == BIG_ENDIAN and _in_words(header):
            data = _swapped(header, length + length % 2)
    for number in range(len(seg.frames)):
        start, end = number * size * bits, (number + 1) * size * bits
        part = data[start // 8 : (end + 7) // 8]
        if bits == 1:  # a frame may start within a byte (PS3.5, 8.1.1)
            yield np.unpackbits(part, bitorder="little")[start % 8 : start % 8 + size].reshape(rows, columns)
        else:
            yield part.view(f"<u{bits // 8}").reshape(rows, columns)


def _in_words(header: Header) -> bool:
    """Whether pixel data of Explicit VR Big Endian are words: tag, VR, two bytes, length stand before them."""
    return bytes(np.memmap(header.path, dtype=np.uint8, mode="r", offset=header.pixel_offset - 8, shape=(2,))) == b"OW"


def _swapped(header: Header, length: int) -> NDArray[np.uint8]:
    """Pixel data with the bytes of each word in the order of Little Endian; bits and bytes are in words too."""
    words = np.memmap(header.path, dtype=np.uint16, mode="r", offset=header.pixel_offset, shape=(length // 2,))
    return words.byteswap().view(np.uint8)


def _decoded(seg: SegObject) -> Iterator[NDArray[Any]]:
    from pydicom.pixels import iter_pixels  # MONAI Label's environment has pydicom 2, and trains on label maps

    frames = iter_pixels(seg.header.path, raw=True)
    for number in range(1, len(seg.frames) + 1):
        try:
            frame = next(frames)
        except Exception as error:  # decoders raise whatever they like
            raise Refusal(
                "undecodable",
                f"{seg.name}: frame {number} of {len(seg.frames)} cannot be decoded ({type(error).__name__}: {error}); "
                "write the object in Explicit VR Little Endian",
            ) from error
        if frame.shape != seg.shape:
            raise Refusal("undecodable", f"{seg.name}: frame {number} has shape {frame.shape}, expected {seg.shape}")
        yield frame
