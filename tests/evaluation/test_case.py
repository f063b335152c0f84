from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from medseg.errors import Refusal, UsageError
from medseg.evaluation import Definitions, evaluate_case
from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_METRICS, METRICS
from tests.evaluation import brute_force

DISTANCES = ("hd_mm", "hd95_mm", "assd_mm", "masd_mm")

shapes = st.tuples(*[st.integers(1, 8)] * 3)
spacings = st.tuples(*[st.floats(0.2, 5.0)] * 3)


@st.composite
def label_maps(draw: st.DrawFn, highest: int = 3) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two small label maps: noise (many components), boxes (touching borders), single voxels or nothing."""
    shape = draw(shapes)
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.int64, np.float32]))
    maps = []
    for _ in range(2):
        volume = np.zeros(shape, dtype=dtype)
        kind = draw(st.sampled_from(["noise", "boxes", "voxel", "nothing"]))
        if kind == "noise":
            volume = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, highest))).astype(dtype)
        elif kind == "boxes":
            for label in range(1, highest + 1):
                corner = [draw(st.integers(0, n - 1)) for n in shape]
                volume[tuple(slice(c, c + draw(st.integers(1, 6))) for c in corner)] = label
        elif kind == "voxel":
            volume[tuple(draw(st.integers(0, n - 1)) for n in shape)] = draw(st.integers(1, highest))
        maps.append(volume if draw(st.booleans()) else np.asfortranarray(volume))
    return maps[0], maps[1]


def assert_equals_brute_force(
    results: list[StructureResult], prediction: Any, reference: Any, axes_mm: Any, tolerance_mm: float
) -> None:
    for result in results:
        p, r = prediction == result.label, reference == result.label
        assert result.missed == (r.any() and not p.any())
        assert result.invented == (p.any() and not r.any())
        if not p.any() and not r.any():
            assert result.absent
            assert all(result.values[name] is None for name in ("dice", *DISTANCES, "nsd", "lesion_f1"))
            continue
        expected: dict[str, float | None] = dict(brute_force.overlap_metrics(p, r))
        expected["lesion_f1"] = brute_force.lesion_f1(p, r)
        if p.any() and r.any():
            expected.update(brute_force.surface_metrics(p, r, axes_mm, tolerance_mm))
            expected.pop("pooled_hd95_mm")
        else:
            expected.update(dict.fromkeys(DISTANCES), nsd=0.0)
        for name, value in expected.items():
            found = result.values[name]
            assert found == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), name


@settings(max_examples=60, deadline=None)
@given(maps=label_maps(), spacing_mm=spacings, tolerance_mm=st.sampled_from([0.0, 0.71, 1.3, 4.1]))
def test_equals_brute_force(maps: Any, spacing_mm: tuple[float, float, float], tolerance_mm: float) -> None:
    prediction, reference = maps
    results = evaluate_case(prediction, reference, spacing_mm, [1, 2, 3], tolerance_mm)
    assert_equals_brute_force(results, prediction, reference, np.diag(spacing_mm), tolerance_mm)


@settings(max_examples=8, deadline=None)
@given(maps=label_maps(highest=40), spacing_mm=spacings)
def test_equals_brute_force_with_forty_labels(maps: Any, spacing_mm: tuple[float, float, float]) -> None:
    prediction, reference = maps
    results = evaluate_case(prediction, reference, spacing_mm, range(1, 41))
    assert [result.label for result in results] == list(range(1, 41))
    assert_equals_brute_force(results, prediction, reference, np.diag(spacing_mm), 1.0)


@settings(max_examples=20, deadline=None)
@given(maps=label_maps(highest=2), shear=st.floats(-0.7, 0.7), spacing_mm=spacings)
def test_sheared_grids_are_measured_between_true_positions(
    maps: Any, shear: float, spacing_mm: tuple[float, float, float]
) -> None:
    prediction, reference = maps
    axes_mm = np.diag(spacing_mm)
    axes_mm[1, 2] = shear * spacing_mm[2]
    results = evaluate_case(prediction, reference, spacing_mm, [1, 2], 1.3, axes_mm=axes_mm)
    assert_equals_brute_force(results, prediction, reference, axes_mm, 1.3)


@settings(max_examples=15, deadline=None)
@given(maps=label_maps(highest=1), spacing_mm=spacings, angle=st.floats(0.1, 1.5))
def test_a_rotated_grid_changes_nothing(maps: Any, spacing_mm: tuple[float, float, float], angle: float) -> None:
    prediction, reference = maps
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    [plain] = evaluate_case(prediction, reference, spacing_mm, [1])
    [turned] = evaluate_case(prediction, reference, spacing_mm, [1], axes_mm=turn @ np.diag(spacing_mm))
    for name, value in plain.values.items():
        assert turned.values[name] == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-9)), name


@settings(max_examples=20, deadline=None)
@given(maps=label_maps(highest=1), spacing_mm=spacings)
def test_pooled_percentile_equals_brute_force(maps: Any, spacing_mm: tuple[float, float, float]) -> None:
    prediction, reference = maps
    pooled = Definitions(percentile_rule="pooled", percentiles=(50.0,))
    [result] = evaluate_case(prediction, reference, spacing_mm, [1], definitions=pooled)
    if prediction.any() and reference.any():
        expected = brute_force.surface_metrics(prediction == 1, reference == 1, np.diag(spacing_mm), 1.0)
        assert result.hd95_mm == pytest.approx(expected["pooled_hd95_mm"], rel=1e-6, abs=1e-9)
        assert result.values["hd50_mm"] is not None
        assert result.values["hd50_mm"] <= result.values["hd95_mm"]  # type: ignore[operator]
    else:
        assert result.hd95_mm is None


def box(lo: tuple[int, int, int], hi: tuple[int, int, int], shape: tuple[int, int, int] = (20, 20, 20)) -> Any:
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))] = 1
    return volume


def test_a_shifted_box_has_the_distances_a_hand_can_check() -> None:
    [result] = evaluate_case(box((5, 4, 4), (13, 10, 10)), box((3, 4, 4), (11, 10, 10)), (1.5, 1.0, 1.0), {1: "box"})
    assert (result.hd_mm, result.hd95_mm) == (3.0, 3.0)
    assert result.dice == pytest.approx(6 / 8)
    assert [result.volume_ml, result.volume_difference_ml] == pytest.approx([8 * 36 * 1.5 / 1000, 0.0])


@pytest.mark.parametrize("gap_mm", [0.0, 1.0, 2.0])
def test_nested_boxes_lie_a_known_distance_apart(gap_mm: float) -> None:
    gap = int(gap_mm)
    inner, outer = box((6, 6, 6), (12, 12, 12)), box((6 - gap,) * 3, (12 + gap,) * 3)
    [result] = evaluate_case(inner, outer, (1.0, 1.0, 1.0), [1], tolerance_mm=gap_mm)
    corner_mm = gap_mm * np.sqrt(3)
    assert result.hd_mm == pytest.approx(corner_mm)
    # Every inner surface voxel faces the outer box at exactly the gap; only the outer edges lie farther away.
    assert result.nsd == pytest.approx(1.0 if gap == 0 else result.nsd)
    assert result.nsd > 0.55  # type: ignore[operator]


def test_concentric_spheres_differ_by_their_radii() -> None:
    grid = np.ogrid[-20:21, -20:21, -20:21]
    squared = grid[0] ** 2 + grid[1] ** 2 + grid[2] ** 2
    small, large = (squared <= 10**2).astype(np.uint8), (squared <= 15**2).astype(np.uint8)
    [result] = evaluate_case(small, large, (2.0, 2.0, 2.0), {1: "sphere"})
    for name in DISTANCES:
        assert result.values[name] == pytest.approx(10.0, abs=1.5), name
    assert result.dice == pytest.approx(2 * 10**3 / (10**3 + 15**3), abs=0.01)
    assert result.lesion_f1 == 1.0


def test_many_far_points_take_the_distance_transform_and_agree() -> None:
    generator = np.random.default_rng(0)
    prediction = (generator.random((24, 22, 20)) < 0.3).astype(np.uint8)
    reference = box((0, 0, 0), (2, 2, 2), (24, 22, 20))
    reference[0, 0, 0], prediction[-1, -1, -1] = 1, 1
    [result] = evaluate_case(prediction, reference, (0.7, 1.1, 3.3), [1])
    expected = brute_force.surface_metrics(prediction == 1, reference == 1, np.diag([0.7, 1.1, 3.3]), 1.0)
    for name in DISTANCES:
        assert result.values[name] == pytest.approx(expected[name], rel=1e-6), name


def test_missed_and_invented_structures_score_zero_and_have_no_distance() -> None:
    prediction, reference = box((1, 1, 1), (4, 4, 4)), box((1, 1, 1), (4, 4, 4))
    prediction[10:12, 10, 10] = 2
    reference[15, 15, 15] = 3
    perfect, invented, missed, absent = evaluate_case(prediction, reference, (1, 1, 1), [1, 2, 3, 4])
    assert (perfect.dice, perfect.hd_mm, perfect.missed, perfect.invented) == (1.0, 0.0, False, False)
    for wrong in (invented, missed):
        assert (wrong.dice, wrong.iou, wrong.precision, wrong.recall, wrong.nsd, wrong.lesion_f1) == (0.0,) * 6
        assert all(wrong.values[name] is None for name in DISTANCES)
    assert (invented.invented, invented.missed) == (True, False)
    assert (missed.invented, missed.missed) == (False, True)
    assert (missed.volume_ml, missed.reference_volume_ml) == (0.0, 0.001)
    assert absent.absent
    assert not absent.missed
    assert absent.dice is None


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (np.nan, "non-finite"),
        (np.inf, "non-finite"),
        (0.5, "unexpected-labels"),
        (2, "unexpected-labels"),
        (-1, "unexpected-labels"),
        (1e12, "unexpected-labels"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_no_label_map_is_refused(value: float, code: str, side: int) -> None:
    volumes = [box((1, 1, 1), (4, 4, 4)).astype(np.float32) for _ in range(2)]
    volumes[side][9, 9, 9] = value
    with pytest.raises(Refusal, match=("prediction", "reference")[side]) as refusal:
        evaluate_case(volumes[0], volumes[1], (1, 1, 1), [1])
    assert refusal.value.code == code


def test_different_shapes_are_refused() -> None:
    with pytest.raises(Refusal, match="resample") as refusal:
        evaluate_case(np.zeros((3, 4, 5), np.uint8), np.zeros((3, 5, 4), np.uint8), (1, 1, 1), [1])
    assert refusal.value.code == "geometry-mismatch"


def test_four_dimensions_are_refused() -> None:
    with pytest.raises(Refusal) as refusal:
        evaluate_case(np.zeros((2, 3, 4, 5), np.uint8), np.zeros((2, 3, 4, 5), np.uint8), (1, 1, 1), [1])
    assert refusal.value.code == "not-3d"


def test_an_image_without_declared_labels_is_refused() -> None:
    image = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    with pytest.raises(Refusal, match="looks like an image") as refusal:
        evaluate_case(image, image, (1, 1, 1), None)
    assert refusal.value.code == "unexpected-labels"


@pytest.mark.parametrize("spacing_mm", [(0, 1, 1), (-1, 1, 1), (1, 1, float("nan")), (1, 1)])
def test_an_impossible_spacing_is_an_error(spacing_mm: Any) -> None:
    volume = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(UsageError, match="spacing"):
        evaluate_case(volume, volume, spacing_mm, [1])


@pytest.mark.parametrize("tolerance_mm", [-1.0, float("nan")])
def test_an_impossible_tolerance_is_an_error(tolerance_mm: float) -> None:
    volume = np.ones((3, 3, 3), np.uint8)
    with pytest.raises(UsageError, match="tolerance"):
        evaluate_case(volume, volume, (1, 1, 1), [1], tolerance_mm)


def test_each_label_can_have_its_own_tolerance() -> None:
    reference = box((2, 2, 2), (6, 6, 6))
    reference[10:14, 10:14, 10:14] = 2
    prediction = np.roll(reference, 1, axis=0)
    loose, strict = evaluate_case(prediction, reference, (2.0, 1, 1), [1, 2], {1: 2.0, 2: 0.5})
    assert loose.nsd == 1.0
    assert strict.nsd < 1.0  # type: ignore[operator]


def test_metrics_are_attributes_and_results_travel_between_processes() -> None:
    [result] = evaluate_case(box((1, 1, 1), (3, 3, 3)), box((1, 1, 1), (3, 3, 3)), (1, 1, 1), {1: "box"})
    assert pickle.loads(pickle.dumps(result)) == result
    assert set(CSV_METRICS) <= set(result.values) == {metric.name for metric in METRICS}
    with pytest.raises(AttributeError, match="no metric 'dise'"):
        _ = result.dise


@pytest.mark.parametrize(
    "arguments",
    [
        {"percentile_rule": "max"},
        {"surface": "x"},
        {"percentiles": (0.0,)},
        {"lesion_overlap": 1.0},
        {"lesion_connectivity": 4},
    ],
)
def test_unknown_definitions_are_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give"):
        Definitions(**arguments)
