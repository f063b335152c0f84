"""DICOM segmentations as labels: every type, frames in any order, and nothing that does not belong."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.labels import ImageGrid, LabelScheme, ReadingRules, read_label
from tests.labels.objects import (
    SHAPE,
    Series,
    affine,
    label_map,
    masks,
    read,
    save,
    scheme,
    segmentation,
    series,
)
from tests.outputs.series import rotation


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return series(tmp_path_factory.mktemp("images"), affine(rotation(23.0), shear_mm=0.4))


@pytest.mark.parametrize("order", ["as the slices", "shuffled"])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_every_type_on_an_oblique_sheared_grid(images: Series, tmp_path: Path, kind: str, order: str) -> None:
    structures = {name: mask * np.uint8(255) for name, mask in masks().items()}
    count = segmentation(images, structures, kind).NumberOfFrames
    frames = np.random.default_rng(3).permutation(count) if order == "shuffled" else range(count)
    found = read(segmentation(images, structures, kind, order=frames), tmp_path / "s", images.folder)
    np.testing.assert_array_equal(found.array, label_map())
    assert found.geometry.matches(images.geometry)
    assert found.values.voxels == {0: int((label_map() == 0).sum()), 1: 79, 2: 9}


def test_a_threshold_decides_of_fractions_and_is_noted(images: Series, tmp_path: Path) -> None:
    structures = {"liver": np.where(masks()["liver"], 150, 90).astype(np.uint8)}
    for threshold, count in ((0.5, 79), (0.3, np.prod(SHAPE)), (0.8, 0)):
        dataset = segmentation(images, structures, "FRACTIONAL", most=200)
        found = read(dataset, tmp_path / "s", images.folder, ReadingRules(threshold=threshold))
        assert found.values.voxels.get(1, 0) == count
        assert found.notes == (f"fractional values from {threshold:g} of the largest (200) are inside",)


def test_without_an_image_the_frames_have_a_grid_of_their_own(images: Series, tmp_path: Path) -> None:
    gap = {"liver": masks()["liver"]}
    gap["liver"][..., 2:4] = False
    found = read(segmentation(images, gap), tmp_path / "s", None)
    assert found.geometry.shape == (9, 8, 4)
    np.testing.assert_array_equal(found.array, gap["liver"][..., 1:5])
    np.testing.assert_allclose(found.geometry.affine[:3, 3], (images.geometry.affine @ [0, 0, 1, 1])[:3], atol=1e-6)


def test_a_part_of_the_image_in_any_axis_order(images: Series, tmp_path: Path) -> None:
    """The image as another reader may give it, its first voxel within the frames."""
    flip = np.array([[0, -1, 0, 6], [0, 0, 1, 1], [1, 0, 0, 2], [0, 0, 0, 1]], dtype=float)  # this grid → the source's
    image = ImageGrid(Geometry((4, 7, 5), images.geometry.affine @ flip))
    found = read(segmentation(images), tmp_path / "s", image)
    index = np.indices((4, 7, 5)).reshape(3, -1)
    i, j, k = (flip[:3, :3] @ index + flip[:3, 3:]).astype(int)
    np.testing.assert_array_equal(found.array.ravel(), label_map()[i, j, k])
    assert any("labelled pixels lie outside the image" in note for note in found.notes)


def test_another_grid_is_refused_or_resampled_on_request(images: Series, tmp_path: Path) -> None:
    finer = images.geometry.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    image = ImageGrid(Geometry((18, 16, 12), finer), *_identity(images))
    with pytest.raises(Refusal, match="pixels of another size") as refusal:
        read(segmentation(images), tmp_path / "s", image)
    assert refusal.value.code == "geometry-mismatch"
    found = read(segmentation(images), tmp_path / "s", image, ReadingRules(resample=True))
    np.testing.assert_array_equal(found.array[::2, ::2, ::2], label_map())
    assert "nearest voxel" in found.notes[-1]


def _identity(images: Series) -> tuple[str, str]:
    known = ImageGrid.of(images.folder)
    return known.series, known.frame_of_reference


def test_half_a_voxel_beside_the_grid_is_another_place(images: Series, tmp_path: Path) -> None:
    shifted = images.geometry.affine.copy()
    shifted[:3, 3] += shifted[:3, 0] / 2
    with pytest.raises(Refusal, match="beside the voxels") as refusal:
        read(segmentation(images), tmp_path / "s", ImageGrid(Geometry(SHAPE, shifted)))
    assert refusal.value.code == "geometry-mismatch"


def test_names_are_mapped_without_regard_to_capitals(images: Series, tmp_path: Path) -> None:
    structures = {"  LEBER": masks()["liver"], "Tumour": masks()["tumour"], "body": np.ones(SHAPE, bool)}
    rules = ReadingRules({"leber": "liver", "BODY": None})
    found = read(segmentation(images, structures), tmp_path / "s", images.folder, rules)
    np.testing.assert_array_equal(found.array, label_map())


def test_unknown_names_are_refused_with_what_is_known(images: Series, tmp_path: Path) -> None:
    with pytest.raises(
        Refusal, match=r"'Leber' and 'spleen \(mapped to milz\)', the declared .* liver and tumour"
    ) as no:
        read(
            segmentation(images, {"Leber": masks()["liver"], "spleen": masks()["tumour"]}),
            tmp_path / "s",
            images.folder,
            ReadingRules({"spleen": "milz"}),
        )
    assert no.value.code == "unmapped-structure"
    assert '{"Leber": "STRUCTURE"}' in no.value.message


def test_several_segments_of_one_structure_are_joined(images: Series, tmp_path: Path) -> None:
    parts = {"tumour": masks()["tumour"], "Tumour 2": masks()["liver"]}
    found = read(segmentation(images, parts), tmp_path / "s", images.folder, ReadingRules({"tumour 2": "tumour"}))
    np.testing.assert_array_equal(found.array, np.where(label_map() > 0, 2, 0))


def overlapping() -> dict[str, np.ndarray]:
    found = masks()
    found["liver"] = found["liver"] | found["tumour"]
    return found


def test_overlap_is_refused_with_its_size(images: Series, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="liver and tumour overlap in 9 voxels") as refusal:
        read(segmentation(images, overlapping()), tmp_path / "s", images.folder)
    assert refusal.value.code == "overlapping-labels"


@pytest.mark.parametrize(("order", "above"), [(("liver", "tumour"), 2), (("tumour", "liver"), 1)])
def test_an_order_says_who_lies_above(images: Series, tmp_path: Path, order: tuple[str, ...], above: int) -> None:
    found = read(segmentation(images, overlapping()), tmp_path / "s", images.folder, ReadingRules(order=order))
    np.testing.assert_array_equal(found.array, np.where(label_map() == 2, above, label_map()))
    assert found.notes == ("liver and tumour overlap in 9 voxels: the later in order is above",)


def test_regions_overlap_by_their_meaning(images: Series, tmp_path: Path) -> None:
    labels = LabelScheme.of({"labels": {"background": 0, "liver": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]})
    path = save(segmentation(images, overlapping()), tmp_path / "s")
    found = read_label(path, scheme=labels, image=images.folder)
    np.testing.assert_array_equal(found.array, label_map())
    assert found.notes == ()
    path = save(segmentation(images), tmp_path / "s")  # the tumour beside the liver, which no value means
    found = read_label(path, scheme=labels, image=images.folder)
    np.testing.assert_array_equal(found.array, label_map())
    assert found.notes == ("9 voxels of tumour alone, which no value means, count as liver and tumour",)


def test_background_and_padding_of_a_label_map_are_no_structures(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images, kind="LABELMAP")
    background = deepcopy(dataset.SegmentSequence[0])
    background.SegmentNumber, background.SegmentLabel = 0, "Background"
    dataset.SegmentSequence.append(background)
    dataset.PixelPaddingValue = 9
    dataset["PixelPaddingValue"].VR = "US"
    dataset.PixelData = dataset.PixelData.replace(b"\0", b"\x09")
    found = read(dataset, tmp_path / "s", images.folder)
    np.testing.assert_array_equal(found.array, label_map())


def test_a_deflated_object_is_read(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(read(dataset, tmp_path / "s", images.folder).array, label_map())


def test_a_compressed_object_is_read(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images, kind="LABELMAP")
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    np.testing.assert_array_equal(read(dataset, tmp_path / "s", images.folder).array, label_map())


def test_another_frame_of_reference_is_refused(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images)
    dataset.FrameOfReferenceUID = generate_uid()
    with pytest.raises(Refusal, match="another frame of reference than its image, though to its series") as refusal:
        read(dataset, tmp_path / "s", images.folder)
    assert refusal.value.code == "other-frame-of-reference"


def test_another_series_of_the_same_frame_is_noted(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images)
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    found = read(dataset, tmp_path / "s.dcm", images.folder)
    assert found.notes == ("the label s.dcm refers to another series of its image's frame of reference",)


def test_the_series_is_enough_where_no_frame_of_reference_is_said(images: Series, tmp_path: Path) -> None:
    dataset = segmentation(images)
    del dataset.FrameOfReferenceUID
    assert read(dataset, tmp_path / "s", images.folder).notes == ()
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    with pytest.raises(Refusal, match="has no frame of reference"):
        read(dataset, tmp_path / "s", images.folder)


def test_what_nothing_declares_has_no_value(images: Series, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"declared structures are none.*name the values under `labels`"):
        read_label(save(segmentation(images), tmp_path / "s"), scheme=LabelScheme(), image=images.folder)
    assert scheme().structures == {1: "liver", 2: "tumour"}
