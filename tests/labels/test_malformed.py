"""Objects that are wrong in one way each: every one is refused with its code, and none is read as something else."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from medseg.errors import Refusal
from medseg.labels import LabelScheme, ReadingRules, read_label
from tests.labels.objects import (
    NAMES,
    Series,
    label_map,
    masks,
    ring,
    save,
    segmentation,
    series,
    structure_set,
)

Change = Callable[[Dataset], Any]
MALFORMED = "malformed-object"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return series(tmp_path_factory.mktemp("images"))


def refused(path: Path, images: Series, code: str, rules: ReadingRules | None = None) -> None:
    with pytest.raises(Refusal) as refusal:
        read_label(path, scheme=LabelScheme(NAMES), rules=rules, image=images.folder)
    assert refusal.value.code == code, refusal.value.message
    assert path.name in refusal.value.message or "image" in refusal.value.message
    assert len(refusal.value.message) > 60  # found, expected, to do


def frame(dataset: Dataset, number: int = 1) -> Dataset:
    return dataset.PerFrameFunctionalGroupsSequence[number]


def place(dataset: Dataset, number: int = 1) -> Dataset:
    return frame(dataset, number).PlanePositionSequence[0]


def shared(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0]


def put(where: Callable[[Dataset], Dataset], keyword: str, value: Any) -> Change:
    return lambda dataset: setattr(where(dataset), keyword, value)


def drop(where: Callable[[Dataset], Dataset], keyword: str) -> Change:
    return lambda dataset: delattr(where(dataset), keyword)


def raw(where: Callable[[Dataset], Dataset], keyword: str, vr: str, value: bytes) -> Change:
    """Bytes that pydicom would not write by itself."""

    def change(dataset: Dataset) -> None:
        tag = Tag(keyword)
        where(dataset)[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)

    return change


def top(dataset: Dataset) -> Dataset:
    return dataset


def twice(dataset: Dataset) -> None:
    """The first frame's place and segment once more, with other pixels."""
    frame(dataset, 1).PlanePositionSequence = deepcopy(frame(dataset, 0).PlanePositionSequence)
    frame(dataset, 1).SegmentIdentificationSequence = deepcopy(frame(dataset, 0).SegmentIdentificationSequence)


ORIENTATION = "ImageOrientationPatient"
SEGMENTATIONS: dict[str, tuple[str, Change]] = {
    "another frame of reference": ("other-frame-of-reference", put(top, "FrameOfReferenceUID", generate_uid())),
    "no frame of reference, another series": (
        "other-frame-of-reference",
        lambda d: (drop(top, "FrameOfReferenceUID")(d), drop(top, "ReferencedSeriesSequence")(d)),
    ),
    "no per-frame groups": (MALFORMED, drop(top, "PerFrameFunctionalGroupsSequence")),
    "fewer per-frame groups than frames": (MALFORMED, lambda d: d.PerFrameFunctionalGroupsSequence.pop()),
    "more per-frame groups than frames": (
        MALFORMED,
        lambda d: d.PerFrameFunctionalGroupsSequence.append(deepcopy(frame(d))),
    ),
    "no number of frames": (MALFORMED, drop(top, "NumberOfFrames")),
    "no frames": ("unreadable|malformed-object", put(top, "NumberOfFrames", 0)),
    "more frames than pixels": ("truncated|malformed-object", put(top, "NumberOfFrames", 4096)),
    "frames without end": ("truncated|malformed-object|unreadable", put(top, "NumberOfFrames", 2**31 - 1)),
    "rows without end": ("truncated|too-large", put(top, "Rows", 65535)),
    "no rows": (MALFORMED, drop(top, "Rows")),
    "zero columns": (MALFORMED, put(top, "Columns", 0)),
    "sixteen bits of a binary one": ("truncated|malformed-object", put(top, "BitsAllocated", 16)),
    "no bits": (MALFORMED, drop(top, "BitsAllocated")),
    "colour": (MALFORMED, put(top, "SamplesPerPixel", 3)),
    "an unknown type": (MALFORMED, put(top, "SegmentationType", "SURFACE")),
    "no type": (MALFORMED, drop(top, "SegmentationType")),
    "no pixel data": ("no-pixel-data", drop(top, "PixelData")),
    "truncated pixel data": ("truncated", lambda d: setattr(d, "PixelData", d.PixelData[:-4])),
    "no segments": (MALFORMED, drop(top, "SegmentSequence")),
    "an empty list of segments": (MALFORMED, put(top, "SegmentSequence", [])),
    "a segment without number": (MALFORMED, lambda d: delattr(d.SegmentSequence[0], "SegmentNumber")),
    "a segment without label": (MALFORMED, lambda d: delattr(d.SegmentSequence[0], "SegmentLabel")),
    "a blank label": (MALFORMED, lambda d: setattr(d.SegmentSequence[0], "SegmentLabel", " ")),
    "two segments of one number": (MALFORMED, lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1)),
    "an unknown name": ("unmapped-structure", lambda d: setattr(d.SegmentSequence[1], "SegmentLabel", "Milz")),
    "a frame of a segment that is not there": (
        MALFORMED,
        lambda d: setattr(frame(d).SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 7),
    ),
    "a frame of segment 0": (
        MALFORMED,
        lambda d: setattr(frame(d).SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 0),
    ),
    "a frame of no segment": (MALFORMED, lambda d: delattr(frame(d), "SegmentIdentificationSequence")),
    "an empty segment identification": (MALFORMED, lambda d: setattr(frame(d), "SegmentIdentificationSequence", [])),
    "two frames at one place": (MALFORMED, twice),
    "a frame without place": (MALFORMED, drop(frame, "PlanePositionSequence")),
    "no places at all": (
        "no-geometry",
        lambda d: [delattr(own, "PlanePositionSequence") for own in d.PerFrameFunctionalGroupsSequence],
    ),
    "a place of two numbers": (MALFORMED, raw(place, "ImagePositionPatient", "DS", b"1.0\\2.0 ")),
    "a place that is no number": (MALFORMED, raw(place, "ImagePositionPatient", "DS", b"1.0\\nan\\3.0")),
    "a place beyond all numbers": (MALFORMED, raw(place, "ImagePositionPatient", "DS", b"1.0\\1e999\\3.0 ")),
    "a place in words": (MALFORMED, raw(place, "ImagePositionPatient", "DS", b"left\\up\\in")),
    "a place elsewhere in the plane": (
        "geometry-mismatch",
        lambda d: setattr(place(d), "ImagePositionPatient", [v + 0.4 for v in place(d).ImagePositionPatient]),
    ),
    "a place between slices": (
        "geometry-mismatch",
        lambda d: setattr(place(d), "ImagePositionPatient", [*place(d).ImagePositionPatient[:2], -118.0]),
    ),
    "no orientation": (MALFORMED, drop(shared, "PlaneOrientationSequence")),
    "an orientation of three numbers": (
        MALFORMED,
        raw(lambda d: shared(d).PlaneOrientationSequence[0], ORIENTATION, "DS", b"1\\0\\0 "),
    ),
    "an orientation of zeros": (
        MALFORMED,
        lambda d: setattr(shared(d).PlaneOrientationSequence[0], ORIENTATION, [0, 0, 0, 0, 0, 0]),
    ),
    "axes that are one": (
        MALFORMED,
        lambda d: setattr(shared(d).PlaneOrientationSequence[0], ORIENTATION, [1, 0, 0, 1, 0, 0]),
    ),
    "axes that are turned": (
        "geometry-mismatch",
        lambda d: setattr(shared(d).PlaneOrientationSequence[0], ORIENTATION, [0.8, 0.6, 0, -0.6, 0.8, 0]),
    ),
    "no pixel spacing": (MALFORMED, drop(shared, "PixelMeasuresSequence")),
    "no spacing at all": (
        MALFORMED,
        lambda d: setattr(shared(d).PixelMeasuresSequence[0], "PixelSpacing", [0, 0]),
    ),
    "negative spacing": (MALFORMED, lambda d: setattr(shared(d).PixelMeasuresSequence[0], "PixelSpacing", [-1.1, 0.8])),
    "another spacing": (
        "geometry-mismatch",
        lambda d: setattr(shared(d).PixelMeasuresSequence[0], "PixelSpacing", [0.8, 1.1]),
    ),
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_segmentations(images: Series, tmp_path: Path, name: str) -> None:
    dataset = segmentation(images)
    codes, change = SEGMENTATIONS[name]
    change(dataset)
    path = save(dataset, tmp_path / "seg.dcm")
    with pytest.raises(Refusal) as refusal:
        read_label(path, scheme=LabelScheme(NAMES), image=images.folder)
    refused(path, images, refusal.value.code)
    assert refusal.value.code in codes.split("|"), refusal.value.message


def without_segment(dataset: Dataset) -> None:
    del dataset.SegmentSequence[1]


def fractions(dataset: Dataset) -> None:
    dataset.MaximumFractionalValue = 100


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("LABELMAP", without_segment),
        ("LABELMAP", put(top, "BitsAllocated", 1)),
        ("FRACTIONAL", fractions),
        ("FRACTIONAL", put(top, "MaximumFractionalValue", 0)),
        ("FRACTIONAL", drop(top, "MaximumFractionalValue")),
    ],
    ids=["value without segment", "one bit", "beyond the largest", "largest is 0", "no largest"],
)
def test_other_types_of_segmentations(images: Series, tmp_path: Path, kind: str, change: Change) -> None:
    dataset = segmentation(images, {n: m * np.uint8(200) for n, m in masks().items()}, kind)
    change(dataset)
    refused(save(dataset, tmp_path / "seg.dcm"), images, MALFORMED)


def test_a_segmentation_that_cannot_be_decoded(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images, kind="LABELMAP")
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    whole = save(dataset, tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "seg.dcm"
    path.write_bytes(whole[:-60] + b"\xff" * 60)
    refused(path, images, "undecodable")


def contour(dataset: Dataset, number: int = 1) -> Dataset:
    return dataset.ROIContourSequence[0].ContourSequence[number]


def roi(dataset: Dataset, number: int = 0) -> Dataset:
    return dataset.StructureSetROISequence[number]


def reference(dataset: Dataset) -> Dataset:
    return dataset.ReferencedFrameOfReferenceSequence[0]


STRUCTURE_SETS: dict[str, tuple[str, Change]] = {
    "another frame of reference": (
        "other-frame-of-reference",
        lambda d: [setattr(item, "ReferencedFrameOfReferenceUID", "1.2.3") for item in d.StructureSetROISequence],
    ),
    "one ROI of another frame": ("other-frame-of-reference", put(roi, "ReferencedFrameOfReferenceUID", "1.2.3")),
    "no ROIs": (MALFORMED, drop(top, "StructureSetROISequence")),
    "an empty list of ROIs": (MALFORMED, put(top, "StructureSetROISequence", [])),
    "an ROI without number": (MALFORMED, drop(roi, "ROINumber")),
    "an ROI without name": (MALFORMED, drop(roi, "ROIName")),
    "two ROIs of one number": (MALFORMED, lambda d: setattr(roi(d, 1), "ROINumber", 1)),
    "an unknown name": ("unmapped-structure", put(roi, "ROIName", "Leber")),
    "contours of an ROI that is not there": (
        MALFORMED,
        lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 9),
    ),
    "contours of no ROI": (MALFORMED, lambda d: delattr(d.ROIContourSequence[0], "ReferencedROINumber")),
    "two lists of contours of one ROI": (
        MALFORMED,
        lambda d: setattr(d.ROIContourSequence[1], "ReferencedROINumber", 1),
    ),
    "no type of a contour": (MALFORMED, drop(contour, "ContourGeometricType")),
    "an unknown type of a contour": (MALFORMED, put(contour, "ContourGeometricType", "CLOSED_BUMPY")),
    "fewer points than stated": (MALFORMED, put(contour, "NumberOfContourPoints", 5)),
    "points without end": (MALFORMED, put(contour, "NumberOfContourPoints", 2**31 - 1)),
    "a point of two numbers": (
        MALFORMED,
        lambda d: setattr(contour(d), "ContourData", contour(d).ContourData[:-1]),
    ),
    "no data": (MALFORMED, drop(contour, "ContourData")),
    "empty data": (MALFORMED, raw(contour, "ContourData", "DS", b"")),
    "not a number": ("non-finite", raw(contour, "ContourData", "DS", b"nan\\nan\\nan\\nan\\1\\1\\1\\1\\1\\1\\1\\1")),
    "beyond all numbers": (
        "non-finite",
        raw(contour, "ContourData", "DS", b"1e999\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1 "),
    ),
    "beyond any patient": (
        "non-finite",
        raw(contour, "ContourData", "DS", b"1e12\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1"),
    ),
    "words": ("non-finite", raw(contour, "ContourData", "DS", b"one\\two\\three ")),
    "commas for points": ("non-finite", raw(contour, "ContourData", "DS", b"1,5\\2,5\\3,5 ")),
    "two dots": (MALFORMED, raw(contour, "ContourData", "DS", b"1.2.3\\4\\5\\1\\1\\1\\1\\1\\1\\1\\1\\1 ")),
    "a number left out": (MALFORMED, raw(contour, "ContourData", "DS", b"1\\\\3\\1\\1\\1\\1\\1\\1\\1\\1\\1 ")),
    "between the slices": (
        "off-slice-contours",
        lambda d: setattr(contour(d), "ContourData", [float(v) + 1.0 for v in contour(d).ContourData]),
    ),
    "far above": (
        "outside-image",
        lambda d: [
            setattr(one, "ContourData", [float(v) + 250 * (n % 3 == 2) for n, v in enumerate(one.ContourData)])
            for one in d.ROIContourSequence[0].ContourSequence
        ],
    ),
    "far beside": (
        "outside-image",
        lambda d: [
            setattr(one, "ContourData", [float(v) + 250 * (n % 3 == 0) for n, v in enumerate(one.ContourData)])
            for one in d.ROIContourSequence[0].ContourSequence
        ],
    ),
    "a slice left out": ("missing-contours", lambda d: d.ROIContourSequence[0].ContourSequence.pop(1)),
    "structures that overlap": (
        "overlapping-labels",
        lambda d: setattr(
            d.ROIContourSequence[1], "ContourSequence", deepcopy(d.ROIContourSequence[0].ContourSequence)
        ),
    ),
}


def drawn(images: Series) -> Dataset:
    liver = [ring((1.5, 4.5), (1.5, 5.5), k) for k in (1, 2, 3)]
    return structure_set(images, {"liver": liver, "tumour": [ring((5.5, 7.5), (1.5, 3.5), 2)]})


@pytest.mark.parametrize("name", STRUCTURE_SETS)
def test_structure_sets(images: Series, tmp_path: Path, name: str) -> None:
    dataset = drawn(images)
    code, change = STRUCTURE_SETS[name]
    change(dataset)
    refused(save(dataset, tmp_path / "rt.dcm"), images, code)


def test_references_to_nothing_are_refused(images: Series, tmp_path: Path) -> None:
    dataset = drawn(images)
    del dataset.ReferencedFrameOfReferenceSequence, dataset.FrameOfReferenceUID
    for item in dataset.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID
    refused(save(dataset, tmp_path / "rt.dcm"), images, "other-frame-of-reference")


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_file_that_ends_early_is_refused_or_nothing_is_lost(images: Series, tmp_path: Path, kind: str) -> None:
    dataset = segmentation(images) if kind == "seg" else drawn(images)
    whole = save(dataset, tmp_path / "whole.dcm").read_bytes()
    expected = read_label(tmp_path / "whole.dcm", scheme=LabelScheme(NAMES), image=images.folder).array
    path = tmp_path / "cut.dcm"
    for length in np.linspace(140, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        try:
            found = read_label(path, scheme=LabelScheme(NAMES), image=images.folder)
        except Refusal:
            continue
        np.testing.assert_array_equal(found.array, expected, err_msg=str(length))
    if kind == "seg":
        np.testing.assert_array_equal(expected, label_map())


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_lengths_that_lie_are_refused_or_nothing_is_lost(images: Series, tmp_path: Path, kind: str) -> None:
    """Lengths of the large sequences replaced: bytes of other elements are never taken for theirs in silence."""
    dataset = segmentation(images) if kind == "seg" else drawn(images)
    whole = bytearray(save(dataset, tmp_path / "whole.dcm").read_bytes())
    expected = read_label(tmp_path / "whole.dcm", scheme=LabelScheme(NAMES), image=images.folder).array
    places = [index for index in range(132, len(whole) - 8) if whole[index : index + 2] == b"SQ"]
    path = tmp_path / "lies.dcm"
    for index in places[:: max(1, len(places) // 20)]:
        for length in (0, 6, 0x7FFFFFFF, 0xFFFFFFFE):
            lies = whole.copy()
            lies[index + 4 : index + 8] = length.to_bytes(4, "little")
            path.write_bytes(lies)
            try:
                found = read_label(path, scheme=LabelScheme(NAMES), image=images.folder)
            except Refusal:
                continue
            np.testing.assert_array_equal(found.array, expected, err_msg=f"{index} {length}")
    assert pydicom.dcmread(tmp_path / "whole.dcm").Modality
