from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.evaluation.overlap import VoxelCounts, detect_lesions


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


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 3), (5, 5, 5), (101, 1, 1)])
def test_lesions_of_single_voxels_packed_densely_are_counted(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    lesions = detect_lesions(mask, mask)
    assert (lesions.predicted, lesions.reference_found) == (int(mask.sum()), int(mask.sum()))
