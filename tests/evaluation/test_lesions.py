"""Lesions one to one by hand, and as panoptica matches them; the centreline's Dice."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.evaluation import Definitions, Options, evaluate_case, evaluate_folders
from medseg.evaluation.overlap import Lesion, match_lesions, strata, summarise_lesions
from medseg.tables import read_table
from tests.evaluation.label_folders import AFFINE, write_maps


def boxes(*places: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((40, 6, 6), bool)
    for start, stop in places:
        mask[start:stop, 1:4, 1:4] = True
    return mask


def test_pairs_by_hand() -> None:
    #                    16 slices: two halves   found at IoU 2/4        missed
    reference = boxes((0, 10), (14, 17), (20, 22))
    prediction = boxes((0, 4), (5, 10), (15, 18), (30, 31))
    found = match_lesions(prediction, reference, 0.001, 26, 0.25)
    # one to one: of the two halves the larger overlap wins, the other is invented
    assert [(one.status, round(one.iou, 3)) for one in found] == [
        ("found", 0.5), ("found", 0.5), ("missed", 0.0), ("invented", 0.0), ("invented", 0.0),
    ]  # fmt: skip
    assert found[0].volume_ml == pytest.approx(0.045)
    assert found[0].reference_volume_ml == pytest.approx(0.09)
    assert found[0].dice == pytest.approx(2 / 3)
    assert [one.status for one in match_lesions(prediction, reference, 0.001, 26, 0.6)].count("found") == 0


def test_sizes_and_figures_by_hand() -> None:
    assert strata((0.1, 1.0)) == ["<0.1 ml", "0.1–1 ml", "≥1 ml"]
    lesions = (
        Lesion("found", 0.04, 0.05, 0.8, 0.9), Lesion("missed", 0.0, 0.05), Lesion("found", 2.0, 1.0, 0.5, 2 / 3),
        Lesion("invented", 0.1, 0.0),
    )  # fmt: skip
    assert [one.stratum((0.1, 1.0)) for one in lesions] == ["<0.1 ml", "<0.1 ml", "≥1 ml", "0.1–1 ml"]
    summary = summarise_lesions(lesions, (0.1, 1.0))
    assert summary["all"]["sensitivity"] == pytest.approx(2 / 3)
    assert summary["all"]["precision"] == pytest.approx(2 / 3)
    assert summary["all"]["panoptic_quality"] == pytest.approx(2 / 3 * 0.65)
    assert summary["<0.1 ml"] == {
        "n_reference": 2, "n_found": 1, "n_missed": 1, "n_invented": 0, "sensitivity": 0.5, "precision": 1.0,
        "f1": pytest.approx(2 / 3), "mean_iou": 0.8, "mean_dice": 0.9, "panoptic_quality": pytest.approx(0.8 * 2 / 3),
    }  # fmt: skip
    assert summary["0.1–1 ml"]["sensitivity"] is None


def test_panoptica_matches_the_same() -> None:
    panoptica = pytest.importorskip("panoptica")
    rng = np.random.default_rng(0)
    for _ in range(3):
        reference = rng.random((24, 24, 24)) < 0.04
        prediction = reference & (rng.random(reference.shape) < 0.8) | (rng.random(reference.shape) < 0.01)
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.SEMANTIC,
            instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
            instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.25),
        )
        theirs = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8), verbose=False)["ungrouped"]
        ours = match_lesions(prediction, reference, 1.0, 26, 0.25)
        figures = summarise_lesions(ours, ())["all"]
        assert (figures["n_found"], figures["n_invented"], figures["n_missed"]) == (theirs.tp, theirs.fp, theirs.fn)
        assert figures["panoptic_quality"] == pytest.approx(theirs.pq)
        assert figures["mean_iou"] == pytest.approx(theirs.sq)


def test_a_broken_vessel_costs_centreline() -> None:
    pytest.importorskip("skimage")
    vessel = np.zeros((30, 9, 9), np.uint8)
    vessel[2:28, 3:6, 3:6] = 1
    thick, broken = vessel.copy(), vessel.copy()
    thick[2:28, 2:7, 2:7] = 1
    broken[13:17] = 0
    chosen = Definitions(centreline=True)

    def cldice(prediction: np.ndarray) -> float:
        [row] = evaluate_case(prediction, vessel, (1, 1, 1), {1: "vessel"}, definitions=chosen)
        assert row.cldice is not None
        return row.cldice

    assert cldice(vessel) == 1.0
    assert cldice(thick) == 1.0  # a matter of width, which Dice punishes
    # all of the prediction's line lies in the vessel; of the vessel's line, a rod of length n, 4 voxels are lost
    from skimage.morphology import skeletonize

    line = int(skeletonize(vessel > 0).sum())
    sensitivity = (line - 4) / line
    assert cldice(broken) == pytest.approx(2 * sensitivity / (1 + sensitivity))
    [without] = evaluate_case(vessel, vessel, (1, 1, 1), {1: "vessel"})
    assert without.cldice is None


def test_an_evaluation_with_lesions_and_probabilities(tmp_path: Path) -> None:
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[2:5, 2:5, 2:5], truth[8:10, 8:10, 8:10] = 1, 1
    prediction = truth.copy()
    prediction[8:10, 8:10, 8:10] = 0
    write_maps(tmp_path / "out", {"a_seg.nii.gz": prediction})
    write_maps(tmp_path / "ref", {"a.nii.gz": truth})
    maps = np.stack([1.0 - 0.5 * prediction, 0.5 * prediction], axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(maps, AFFINE), tmp_path / "out" / "a_probabilities.nii.gz")
    chosen = Options(definitions=Definitions(lesion_iou=0.5, lesion_strata_ml=(0.02,)))
    result = evaluate_folders(
        tmp_path / "out", tmp_path / "ref", tmp_path / "scores", labels={1: "lesion"}, options=chosen
    )
    [row] = read_table(tmp_path / "scores" / "metrics.csv").rows
    assert float(row["ece"]) == pytest.approx((27 * 0.5 + 8 * 1.0) / 35)
    assert row["ace"]
    rows = read_table(tmp_path / "scores" / "lesions.csv").rows
    assert [(row["status"], row["stratum"]) for row in rows] == [("found", "≥0.02 ml"), ("missed", "<0.02 ml")]
    summary = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert summary["lesions"]["lesion"]["all"]["sensitivity"] == 0.5
    assert summary["structures"]["lesion"]["metrics"]["ece"]["n"] == 1
    assert result.complete
