from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.evaluation import evaluate_case
from medseg.evaluation.overlap import lesion_scores, voxel_scores


def test_counts_give_the_ratios() -> None:
    scores = voxel_scores(both=6, prediction=8, reference=12)
    assert scores == {"dice": 0.6, "iou": 6 / 14, "precision": 0.75, "recall": 0.5}


def test_specificity_is_of_the_voxels_outside_the_reference() -> None:
    reference, prediction = np.zeros((2, 100, 1, 1), np.uint8)
    reference[:12], prediction[6:14] = 1, 1
    [row] = evaluate_case(prediction, reference, (1.0, 1.0, 1.0), [1])
    assert row.specificity == 86 / 88


def test_a_reference_that_fills_the_image_has_no_specificity() -> None:
    full = np.ones((2, 2, 2), np.uint8)
    assert evaluate_case(full, full, (1.0, 1.0, 1.0), [1])[0].specificity is None


def spots(*places: tuple[int, int]) -> Any:
    volume = np.zeros((12, 12, 12), dtype=bool)
    for start, length in places:
        volume[start : start + length, 2:4, 2:4] = True
    return volume


def test_lesions_are_counted_and_not_their_voxels() -> None:
    reference, prediction = spots((0, 1), (3, 5)), spots((3, 1), (10, 2))
    scores = lesion_scores(prediction, reference)
    assert scores == {"lesion_precision": 0.5, "lesion_recall": 0.5, "lesion_f1": 0.5}


def test_a_demanded_overlap_is_demanded() -> None:
    reference, prediction = spots((3, 5)), spots((3, 1))
    assert lesion_scores(prediction, reference)["lesion_recall"] == 1.0
    assert lesion_scores(prediction, reference, overlap=0.5)["lesion_recall"] == 0.0


def test_connectivity_decides_what_is_one_lesion() -> None:
    diagonal = np.zeros((4, 4, 4), dtype=bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = True
    one = diagonal.copy()
    one[1, 1, 1] = False
    assert lesion_scores(one, diagonal, connectivity=26)["lesion_recall"] == 1.0
    assert lesion_scores(one, diagonal, connectivity=6)["lesion_recall"] == 0.5


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 3), (5, 5, 5), (101, 1, 1)])
def test_lesions_of_single_voxels_packed_densely_are_counted(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    one = np.zeros(shape, bool)
    one[0, 0, 0] = True
    assert lesion_scores(mask, one) == {
        "lesion_precision": 1 / mask.sum(),
        "lesion_recall": 1.0,
        "lesion_f1": 2 / (1 + mask.sum()),
    }
