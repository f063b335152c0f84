"""Structure sets as labels: the slice of each contour, holes, gaps, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medseg import outputs
from medseg.errors import Refusal
from medseg.geometry import Geometry, lps_to_ras
from medseg.ingest import scan
from medseg.labels import ImageGrid, LabelMap, LabelScheme, ReadingRules, read_label
from tests.labels.objects import NAMES, SHAPE, Series, affine, label_map, read, ring, series, structure_set
from tests.outputs.series import FakeBundle, rotation

SQUARE, HOLE = ((1.5, 6.5), (1.5, 5.5)), ((2.5, 4.5), (2.5, 3.5))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return series(tmp_path_factory.mktemp("images"), affine(rotation(23.0), shear_mm=0.4))


def squares(*slices: int) -> NDArray[np.uint8]:
    found = np.zeros(SHAPE, np.uint8)
    found[2:7, 2:6, list(slices)] = 1
    return found


def liver(
    images: Series, tmp_path: Path, *contours: object, rules: ReadingRules | None = None, **change: int
) -> LabelMap:
    return read(structure_set(images, {"liver": contours}, **change), tmp_path / "rt.dcm", images.folder, rules)


@pytest.mark.parametrize("decimals", [2, 5])
def test_contours_lie_in_their_slices_on_an_oblique_sheared_grid(images: Series, tmp_path: Path, decimals: int) -> None:
    found = liver(images, tmp_path, ring(*SQUARE, 2), ring(*SQUARE, 3), decimals=decimals)
    np.testing.assert_array_equal(found.array, squares(2, 3))
    assert found.notes == ()


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_holes_and_several_contours_of_a_slice(images: Series, tmp_path: Path, kind: str) -> None:
    island = ring((7.5, 8.5), (5.5, 7.5), 2)
    found = liver(images, tmp_path, *((one, kind) for one in (ring(*HOLE, 2), ring(*SQUARE, 2), island)))
    expected = squares(2)
    expected[3:5, 3, 2] = 0
    expected[8, 6:8, 2] = 1
    np.testing.assert_array_equal(found.array, expected)


def test_the_image_may_come_in_any_axis_order(images: Series, tmp_path: Path) -> None:
    turn = np.array([[0, 0, -1, 8], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    image = ImageGrid(Geometry((8, 6, 9), images.geometry.affine @ turn))
    found = read(structure_set(images, {"liver": [ring(*SQUARE, 2)]}), tmp_path / "rt", image)
    np.testing.assert_array_equal(found.array, np.transpose(squares(2), (1, 2, 0))[:, :, ::-1])


def test_points_and_open_contours_are_left_out_with_a_note(images: Series, tmp_path: Path) -> None:
    point = (ring(*SQUARE, 2)[:1], "POINT")
    line = (ring(*SQUARE, 3)[:3], "OPEN_PLANAR")
    two = ring(*SQUARE, 3)[:2]
    found = liver(images, tmp_path, point, line, two, ring(*SQUARE, 2))
    np.testing.assert_array_equal(found.array, squares(2))
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 POINT left out, which hold nothing",
        "1 OPEN_PLANAR left out, which hold nothing",
        "1 closed contours of fewer than three points left out, which hold nothing",
    ]


def test_an_roi_without_contours_counts_as_absent(images: Series, tmp_path: Path) -> None:
    dataset = structure_set(images, {"liver": [ring(*SQUARE, 2)], "tumour": []})
    found = read(dataset, tmp_path / "rt.dcm", images.folder)
    assert found.values.voxels.keys() == {0, 1}
    assert found.notes == ("tumour of the label rt.dcm has no contours: it counts as absent",)
    del dataset.ROIContourSequence[1]
    assert read(dataset, tmp_path / "rt.dcm", images.folder).notes == found.notes


def test_a_contour_that_is_listed_twice_counts_once(images: Series, tmp_path: Path) -> None:
    found = liver(images, tmp_path, ring(*SQUARE, 2), ring(*SQUARE, 2)[::-1])
    np.testing.assert_array_equal(found.array, squares(2))
    assert "1 contours fill the same voxels as another one and count once" in found.notes[0]


def test_contours_that_cross_need_a_meaning(images: Series, tmp_path: Path) -> None:
    crossing = (*SQUARE, 2), ((4.5, 7.5), (1.5, 5.5), 2)
    with pytest.raises(Refusal, match="8 of 24 voxels lie in two contours that cross") as refused:
        liver(images, tmp_path, *(ring(*one) for one in crossing))
    assert refused.value.code == "malformed-object"
    found = liver(images, tmp_path, *((ring(*one), "CLOSEDPLANAR_XOR") for one in crossing))
    assert "8 voxels where contours cross count as outside" in found.notes[0]


@pytest.mark.parametrize("off", [0.3, 0.5])
def test_contours_between_slices_are_refused(images: Series, tmp_path: Path, off: float) -> None:
    with pytest.raises(Refusal, match=r"1 of 2 contours lie up to .* mm off the slices of the image") as refusal:
        liver(images, tmp_path, ring(*SQUARE, 2), ring(*SQUARE, 3 + off))
    assert refusal.value.code == "off-slice-contours"


def test_a_contour_that_leaves_its_plane_is_refused(images: Series, tmp_path: Path) -> None:
    bent = ring(*SQUARE, 3)
    bent[0, 2] += 0.4
    with pytest.raises(Refusal, match="off the slices"):
        liver(images, tmp_path, ring(*SQUARE, 2), bent)


def test_rounding_does_not_move_a_contour_off_its_slice(images: Series, tmp_path: Path) -> None:
    found = liver(images, tmp_path, ring(*SQUARE, 2.04), ring(*SQUARE, 2.96))
    np.testing.assert_array_equal(found.array, squares(2, 3))


def test_missing_slices_are_refused_filled_or_left_empty(images: Series, tmp_path: Path) -> None:
    contours = (ring(*SQUARE, 1), ring(*SQUARE, 4))
    with pytest.raises(
        Refusal, match="2 slices between slices with contours have none, such as 2 between 1 and 4"
    ) as no:
        liver(images, tmp_path, *contours)
    assert no.value.code == "missing-contours"
    filled = liver(images, tmp_path, *contours, rules=ReadingRules(missing_slices="fill"))
    np.testing.assert_array_equal(filled.array, squares(1, 2, 3, 4))
    assert "2 slices between contours were filled on request" in filled.notes[0]
    empty = liver(images, tmp_path, *contours, rules=ReadingRules(missing_slices="empty"))
    np.testing.assert_array_equal(empty.array, squares(1, 4))
    assert "2 slices between contours were left empty on request" in empty.notes[0]


def test_a_filled_slice_lies_between_its_neighbours(images: Series, tmp_path: Path) -> None:
    wide, narrow = ring((0.5, 8.5), (0.5, 7.5), 1), ring((2.5, 6.5), (2.5, 5.5), 3)
    found = liver(images, tmp_path, wide, narrow, rules=ReadingRules(missing_slices="fill"))
    areas = (found.array > 0).sum(axis=(0, 1))
    assert areas[1] > areas[2] > areas[3] > 0


def test_two_islands_above_each_other_in_no_voxel_are_no_gap(images: Series, tmp_path: Path) -> None:
    left, right = ring((0.5, 2.5), (0.5, 2.5), 1), ring((5.5, 7.5), (4.5, 6.5), 4)
    assert liver(images, tmp_path, left, right).notes == ()


def test_contours_outside_of_the_image(images: Series, tmp_path: Path) -> None:
    above = [ring(*SQUARE, k) for k in (5, 6, 7)]
    found = liver(images, tmp_path, *above)
    np.testing.assert_array_equal(found.array, squares(5))
    assert "2 contours lie above or below the image" in found.notes[0]
    with pytest.raises(Refusal, match="all 2 contours lie outside the image") as refusal:
        liver(images, tmp_path, *above[1:])
    assert refusal.value.code == "outside-image"
    beside = liver(images, tmp_path, ring((6.5, 20), (1.5, 5.5), 2))
    assert beside.values.voxels[1] == 2 * 4
    assert "1 contours reach beyond the image and were cut" in beside.notes[0]
    with pytest.raises(Refusal, match="outside the image"):
        liver(images, tmp_path, ring((16, 20), (1.5, 5.5), 2))


def test_an_roi_of_another_frame_of_reference_is_refused(images: Series, tmp_path: Path) -> None:
    dataset = structure_set(images, {"liver": [ring(*SQUARE, 2)], "tumour": [ring(*HOLE, 4)]})
    dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"
    with pytest.raises(Refusal) as refusal:
        read(dataset, tmp_path / "rt", images.folder)
    assert refusal.value.code == "other-frame-of-reference"
    found = read(dataset, tmp_path / "rt", images.folder, ReadingRules({"tumour": None}))  # left out, so not judged
    np.testing.assert_array_equal(found.array, squares(2))


def test_a_structure_set_needs_an_image(images: Series, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="outlines have no grid of their own") as refusal:
        read(structure_set(images, {"liver": [ring(*SQUARE, 2)]}), tmp_path / "rt", None)
    assert refusal.value.code == "no-image-grid"


def test_overlap_is_refused_or_ordered(images: Series, tmp_path: Path) -> None:
    dataset = structure_set(images, {"tumour": [ring(*HOLE, 2)], "liver": [ring(*SQUARE, 2)]})
    with pytest.raises(Refusal, match="liver and tumour overlap in 2 voxels"):
        read(dataset, tmp_path / "rt", images.folder)
    found = read(dataset, tmp_path / "rt", images.folder, ReadingRules(order=("liver", "tumour")))
    assert found.values.voxels == {0: SHAPE[0] * SHAPE[1] * SHAPE[2] - 20, 1: 18, 2: 2}


def placed(folder: Path, degrees: float, tilt_mm: float, spacing_mm: tuple[float, float, float]) -> Series:
    lps = affine(rotation(degrees), tilt_mm)
    lps[:3, :3] *= np.array(spacing_mm) / np.linalg.norm(lps[:3, :3], axis=0)
    return series(folder, lps)


SPACINGS = st.tuples(*[st.floats(0.3, 6.0)] * 3)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 0, 1, 3])),
    degrees=st.floats(-80, 80),
    tilt_mm=st.floats(-1.5, 1.5),
    spacing_mm=SPACINGS,
    kind=st.sampled_from(["rtstruct", "seg"]),
)
def test_what_is_written_reads_back_equal_on_any_grid(
    tmp_path_factory: pytest.TempPathFactory,
    labels: NDArray[np.uint8],
    degrees: float,
    tilt_mm: float,
    spacing_mm: tuple[float, float, float],
    kind: outputs.Kind,
) -> None:
    folder = tmp_path_factory.mktemp("grid")
    of = placed(folder / "in", degrees, tilt_mm, spacing_mm)
    [record] = [record for record in scan(of.folder) if record.is_volume]
    assert record.usable, record.message
    geometry = Geometry(record.shape, np.array(record.affine))  # type: ignore[arg-type]
    path = outputs.write(kind, labels, geometry, record, FakeBundle(), folder / "written.dcm")
    names = LabelScheme(dict(FakeBundle().labels))
    found = read_label(path, scheme=names, rules=ReadingRules(missing_slices="empty"), image=of.folder)
    if labels.any():
        np.testing.assert_array_equal(found.array, labels)
        assert not [note for note in found.notes if "slices between contours" not in note and "absent" not in note]


def test_the_usual_label_map_through_contours(images: Series, tmp_path: Path) -> None:
    """The label map of these tests written by medseg's own writer."""
    [record] = scan(images.folder)
    codes = {label: {**FakeBundle().label_codes[1]} for label in (1, 2)}
    bundle = FakeBundle(labels={1: NAMES[1], 2: NAMES[2]}, label_codes=codes)
    path = outputs.write("rtstruct", label_map(), images.geometry, record, bundle, tmp_path / "rt.dcm")
    found = read_label(path, scheme=LabelScheme(NAMES), image=images.folder)
    np.testing.assert_array_equal(found.array, label_map())
    assert lps_to_ras(lps_to_ras(np.eye(4))).tolist() == np.eye(4).tolist()
