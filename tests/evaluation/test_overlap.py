from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from medseg.evaluation.overlap import VoxelCounts, average_precision, detect_lesions


def test_counts_give_the_ratios() -> None:
    counts = VoxelCounts(both=6, prediction=8, reference=12, image=100)
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (0.6, 6 / 14, 0.75, 0.5)
    assert counts.specificity == 86 / 88


def test_a_reference_that_fills_the_image_has_no_specificity() -> None:
    assert VoxelCounts(both=8, prediction=8, reference=8, image=8).specificity is None


def spots(*places: tuple[int, int]) -> Any:
    volume = np.zeros((12, 12, 12), dtype=bool)
    for start, length in places:
        volume[start : start + length, 2:4, 2:4] = True
    return volume


def test_lesions_are_counted_and_not_their_voxels() -> None:
    reference, prediction = spots((0, 1), (3, 5)), spots((3, 1), (10, 2))
    scores = detect_lesions(prediction, reference)
    assert (scores.predicted, scores.predicted_right, scores.reference, scores.reference_found) == (2, 1, 2, 1)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)


def test_a_demanded_overlap_is_demanded() -> None:
    reference, prediction = spots((3, 5)), spots((3, 1))
    assert detect_lesions(prediction, reference).recall == 1.0
    assert detect_lesions(prediction, reference, overlap=0.5).recall == 0.0


def test_connectivity_decides_what_is_one_lesion() -> None:
    diagonal = np.zeros((4, 4, 4), dtype=bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = True
    assert detect_lesions(diagonal, diagonal, connectivity=26).reference == 1
    assert detect_lesions(diagonal, diagonal, connectivity=6).reference == 2


@settings(max_examples=30, deadline=None)
@given(
    probability=hnp.arrays(np.float32, 60, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])),
    reference=hnp.arrays(np.bool_, 60),
)
def test_average_precision_is_sklearns(probability: Any, reference: Any) -> None:
    found = average_precision(probability.reshape(3, 4, 5), reference.reshape(3, 4, 5))
    if not reference.any():
        assert found is None
    else:
        assert found == pytest.approx(average_precision_score(reference, probability))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 3), (5, 5, 5), (101, 1, 1)])
def test_lesions_of_single_voxels_packed_densely_are_counted(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    lesions = detect_lesions(mask, mask)
    assert (lesions.predicted, lesions.reference_found) == (int(mask.sum()), int(mask.sum()))
