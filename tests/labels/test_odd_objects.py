"""Objects that are sound but rare, and objects that look sound and are not: right, told, or refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from medseg.errors import Refusal, UsageError
from medseg.labels import LabelScheme, ReadingRules, read_label
from tests.labels.objects import NAMES, Series, label_map, masks, read, ring, save, segmentation, series
from tests.labels.objects import structure_set as contours_of

FEW = (20, 12, 9)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return series(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return series(tmp_path_factory.mktemp("larger"), shape=FEW)


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_big_endian_swaps_words_alone(images: Series, tmp_path: Path, kind: str, vr: str) -> None:
    dataset = segmentation(images, {name: mask * np.uint8(255) for name, mask in masks().items()}, kind)
    pixels = dataset.PixelData + b"\0" * (len(dataset.PixelData) % 2)
    dataset.PixelData = np.frombuffer(pixels, "<u2").astype(">u2").tobytes() if vr == "OW" else pixels
    dataset["PixelData"].VR = vr
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.save_as(tmp_path / "s", enforce_file_format=True, little_endian=False, implicit_vr=False)
    found = read_label(tmp_path / "s", scheme=LabelScheme(NAMES), image=images.folder)
    np.testing.assert_array_equal(found.array, label_map())


def part_of_several(dataset: Dataset) -> None:
    dataset.ConcatenationUID, dataset.InConcatenationNumber, dataset.InConcatenationTotalNumber = "1.2.3", 1, 2


def nearly_twice(dataset: Dataset) -> None:
    """A slice's frame again, a hair beside it."""
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    second.PlanePositionSequence = deepcopy(first.PlanePositionSequence)
    place = [float(value) for value in first.PlanePositionSequence[0].ImagePositionPatient]
    second.PlanePositionSequence[0].ImagePositionPatient = [place[0] + 0.004, *place[1:]]
    if "SegmentIdentificationSequence" in first:
        second.SegmentIdentificationSequence = deepcopy(first.SegmentIdentificationSequence)


def padding_is_liver(dataset: Dataset) -> None:
    dataset.PixelPaddingValue = 1


def background_is_tumour(dataset: Dataset) -> None:
    dataset.SegmentSequence.append(deepcopy(dataset.SegmentSequence[1]))
    dataset.SegmentSequence[-1].SegmentNumber = 0


def lossy(dataset: Dataset) -> None:
    dataset.LossyImageCompression = "01"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("BINARY", part_of_several),
        ("BINARY", nearly_twice),
        ("LABELMAP", nearly_twice),
        ("LABELMAP", padding_is_liver),
        ("LABELMAP", background_is_tumour),
        ("LABELMAP", lossy),
    ],
)
def test_what_looks_sound_and_is_not(
    images: Series, tmp_path: Path, kind: str, change: Callable[[Dataset], None]
) -> None:
    dataset = segmentation(images, kind=kind)
    change(dataset)
    with pytest.raises(Refusal) as refusal:
        read(dataset, tmp_path / "s", images.folder)
    assert refusal.value.code == "malformed-object"


def test_padding_may_be_a_segment_of_its_own(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images, {**masks(), "Background": label_map() == 0}, "LABELMAP")
    dataset.PixelPaddingValue = 3
    np.testing.assert_array_equal(read(dataset, tmp_path / "s", images.folder).array, label_map())


def test_frames_on_every_second_slice_are_a_grid_of_their_own(larger: Series, tmp_path: Path) -> None:
    """Thicker frames are no stripes; thin ones that only few slices have are."""
    mask = np.zeros(FEW, bool)
    mask[3:9, 2:7, 1::2] = True
    dataset = segmentation(larger, {"liver": mask})
    np.testing.assert_array_equal(read(dataset, tmp_path / "s", larger.folder).array, mask)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = 5.0
    with pytest.raises(Refusal, match=r"5 mm apart, the grid's are 2\.5") as refusal:
        read(dataset, tmp_path / "s", larger.folder)
    assert refusal.value.code == "geometry-mismatch"
    taken = read(dataset, tmp_path / "s", larger.folder, ReadingRules(missing_slices="empty"))
    np.testing.assert_array_equal(taken.array, mask)
    filled = read(dataset, tmp_path / "s", larger.folder, ReadingRules(resample=True)).array
    assert filled[4, 4, 1:8].all()
    del measures.SpacingBetweenSlices
    with pytest.raises(Refusal, match=r"on every 2\. slice alone"):
        read(dataset, tmp_path / "s", larger.folder)


def test_a_threshold_is_no_victim_of_rounding(images: Series, tmp_path: Path) -> None:
    values = {"liver": np.where(masks()["liver"], 55, 54).astype(np.uint8)}  # 0.55 * 100 > 55 in floating point
    dataset = segmentation(images, values, "FRACTIONAL", most=100)
    found = read(dataset, tmp_path / "s", images.folder, ReadingRules(threshold=0.55))
    np.testing.assert_array_equal(found.array, masks()["liver"])
    values = {"liver": masks()["liver"].astype(np.uint8)}  # "anything above 0" takes no voxel of 0
    found = read(
        segmentation(images, values, "FRACTIONAL", most=100),
        tmp_path / "s",
        images.folder,
        ReadingRules(threshold=1e-9),
    )
    np.testing.assert_array_equal(found.array, masks()["liver"])


def test_names_in_two_ways_to_write_an_accent_and_in_two_senses(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images, {"Le\u0301ber": masks()["liver"]})
    dataset.SpecificCharacterSet = "ISO_IR 192"
    found = read(dataset, tmp_path / "s", images.folder, ReadingRules({"L\u00e9ber": "liver"}))
    np.testing.assert_array_equal(found.array, masks()["liver"])
    with pytest.raises(Refusal, match="declares 'liver' for two values"):
        read(segmentation(images), tmp_path / "s", images.folder, liver=1, tumour=2, Liver=3)
    with pytest.raises(UsageError, match="in another spelling"):
        ReadingRules.of({"roi_mapping": {"LEBER": "liver", "leber ": "tumour"}})


def test_an_object_of_another_structure_is_not_taken_for_this_one(images: Series, tmp_path: Path) -> None:
    path = str(save(segmentation(images, {"tumour": masks()["tumour"]}), tmp_path / "s"))
    with pytest.raises(Refusal, match="holds tumour, expected liver"):
        read_label({"liver": path}, scheme=LabelScheme(NAMES), image=images.folder)
    found = read_label({"liver": path}, scheme=LabelScheme({1: "liver"}), image=images.folder)
    np.testing.assert_array_equal(found.array, masks()["tumour"])


def test_two_masks_of_one_name_are_told(tmp_path: Path) -> None:
    for name in ("liver", "Liver"):
        nib.save(nib.Nifti1Image(masks()["liver"].astype(np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in ("liver", "Liver")}
    assert "liver and Liver are one structure" in read_label(files, scheme=LabelScheme(NAMES)).notes[0]


def box(k: float, first: int = 2, last: int = 10) -> np.ndarray:
    return ring((first - 0.5, last + 0.5), (1.5, 8.5), k)


def test_every_second_slice_of_a_slanting_structure(larger: Series, tmp_path: Path) -> None:
    """Outlines that do not lie over each other, so that nothing else tells that slices lack."""
    dataset = contours_of(larger, {"liver": [box(k, 2 * k, 2 * k + 2) for k in (1, 3, 5, 7)]})
    with pytest.raises(Refusal) as refusal:
        read(dataset, tmp_path / "s", larger.folder)
    assert refusal.value.code == "missing-contours"
    found = read(dataset, tmp_path / "s", larger.folder, ReadingRules(missing_slices="fill"))
    assert "3 of them stay empty" in found.notes[-1]


def test_odd_contours_are_told(larger: Series, tmp_path: Path) -> None:
    def notes(contours: list[np.ndarray]) -> tuple[str, ...]:
        return read(contours_of(larger, {"liver": contours}), tmp_path / "s", larger.folder).notes

    whole = [box(k) for k in (2, 3, 4)]
    assert notes(whole) == ()
    assert "slice 3 lack a part" in notes([*whole, box(2, 14, 16), box(4, 14, 16)])[0]
    assert "leaves a tenth" in notes([box(2, 2, 14), box(2, 3, 14)])[0]
    tiny = np.array([[3.2, 3.2, 3], [3.4, 3.2, 3], [3.3, 3.4, 3]])
    assert "no voxel's centre" in notes([tiny])[0]


def test_contours_that_an_offset_moves_are_refused(larger: Series, tmp_path: Path) -> None:
    dataset = contours_of(larger, {"liver": [box(2)]})
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourOffsetVector = [0, 0, 0]
    assert read(dataset, tmp_path / "s", larger.folder).array.any()
    contour.ContourOffsetVector = [5, 0, 0]
    with pytest.raises(Refusal, match="Offset Vector"):
        read(dataset, tmp_path / "s", larger.folder)
