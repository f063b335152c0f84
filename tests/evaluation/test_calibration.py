"""Calibration errors by hand, and which channel of a file of probabilities is which structure."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.evaluation import EvaluationResult, evaluate_folders
from medseg.evaluation.calibration import (
    LEVELS,
    adaptive_calibration_error,
    count_levels,
    expected_calibration_error,
)
from tests.evaluation.label_folders import AFFINE, write_maps

WHOLE, PART = [1, 2], [1]
TRUTH = np.zeros((4, 4, 8), np.uint8)
TRUTH[1, 1, :6], TRUTH[1, 1, 6:] = 1, 2
"""``part`` holds 6 voxels, ``whole`` 8."""


def test_calibration_by_hand() -> None:
    probability = np.array([0.8] * 10 + [0.1] * 10 + [0.0] * 100)
    truth = np.array([True] * 6 + [False] * 4 + [True] + [False] * 9 + [False] * 100)
    counts = count_levels(probability, truth)
    assert counts.sum() == 20  # what nobody asks is left out
    assert expected_calibration_error(counts) == pytest.approx(0.1)
    assert adaptive_calibration_error(counts) == pytest.approx(0.1)
    right = count_levels(np.array([1.0, 1.0, 0.0]), np.array([True, True, False]))
    assert expected_calibration_error(right) == 0.0
    assert expected_calibration_error(np.zeros((LEVELS + 1, 2), np.int64)) is None
    # 30 voxels of 0.9 that are right and 10 of 0.5 that are not: bins of equal voxels weigh them 3 : 1, too
    uneven = count_levels(np.array([0.9] * 30 + [0.5] * 10), np.array([True] * 30 + [False] * 10))
    assert expected_calibration_error(uneven) == pytest.approx((30 * 0.1 + 10 * 0.5) / 40)
    assert adaptive_calibration_error(uneven) == pytest.approx((0.1 + 0.5) / 2)


def score(folder: Path, channels: Sequence[Any], labels: dict[str, Any], run: Any = None) -> EvaluationResult:
    """A perfect prediction with these channels beside it."""
    write_maps(folder / "out", {"a_seg.nii.gz": TRUTH})
    write_maps(folder / "ref", {"a.nii.gz": TRUTH})
    maps = np.stack(channels, axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(maps, AFFINE), folder / "out" / "a_probabilities.nii.gz")
    if run is not None:
        case = {"case_id": "a", "source": "a", "status": "done", "outputs": ["a_seg.nii.gz"], "structures": run}
        (folder / "out" / "run.json").write_text(json.dumps({"cases": [case]}))
    (folder / "labels.json").write_text(json.dumps(labels))
    return evaluate_folders(folder / "out", folder / "ref", folder / "o", labels=folder / "labels.json")


def ece(result: EvaluationResult) -> dict[str, float | None]:
    return {row.name: row.values["ece"] for row in result.results}


def test_channels_of_regions_come_in_their_order_whatever_they_paint(tmp_path: Path) -> None:
    """The network's first channel is the region that paints 2, which the tables list last."""
    whole, part = 0.9 * (TRUTH > 0), 0.6 * (TRUTH == 1)
    table = {"labels": {"whole": WHOLE, "part": PART}, "regions_class_order": [2, 1]}
    assert ece(score(tmp_path, [whole, part], table)) == {"part": pytest.approx(0.4), "whole": pytest.approx(0.1)}


def test_the_run_says_which_region_a_channel_is(tmp_path: Path) -> None:
    """Where the table of labels that was asked for lists them otherwise, and names one that the network has not."""
    whole, part = 0.9 * (TRUTH > 0), 0.6 * (TRUTH == 1)
    run = [{"label": 2, "name": "whole", "values": WHOLE}, {"label": 1, "name": "part", "values": PART}]
    table = {"labels": {"part": 1, "whole": WHOLE, "rest": 2}}
    found = ece(score(tmp_path, [whole, part], table, run))
    assert found == {"part": pytest.approx(0.4), "rest": None, "whole": pytest.approx(0.1)}


def test_regions_of_a_network_with_classes_add_up(tmp_path: Path) -> None:
    one, two = 0.7 * (TRUTH == 1), 0.7 * (TRUTH == 2)
    table = {"labels": {"part": 1, "whole": WHOLE}}
    found = ece(score(tmp_path, [1 - one - two, one + 0.2 * (TRUTH == 2), two + 0.2 * (TRUTH == 1)], table))
    assert found["whole"] == pytest.approx(0.1)


def test_a_structure_that_the_network_does_not_know_takes_no_calibration_from_others(tmp_path: Path) -> None:
    one, two = 0.7 * (TRUTH == 1), 0.9 * (TRUTH == 2)
    found = ece(score(tmp_path, [1 - one - two, one, two], {"labels": {"1": "part", "2": "rest", "7": "other"}}))
    assert found == {"part": pytest.approx(0.3), "rest": pytest.approx(0.1), "other": None}


@pytest.mark.parametrize("value", [np.nan, 255.0, -3.0])
def test_what_is_no_probability_is_refused(tmp_path: Path, value: float) -> None:
    channel = np.where(TRUTH == 1, value, 0.0)
    [refused] = score(tmp_path, [1.0 - (TRUTH > 0), channel], {"labels": {"1": "part", "2": "rest"}}).summary["refused"]
    assert refused["code"] == ("non-finite" if np.isnan(value) else "undecodable")
    assert "a_probabilities.nii.gz" in refused["message"]


def test_a_damaged_file_is_refused_and_not_left_out(tmp_path: Path) -> None:
    assert score(tmp_path, [1.0 - (TRUTH > 0), TRUTH == 1, TRUTH == 2], {"1": "part", "2": "rest"}).complete
    path = tmp_path / "out" / "a_probabilities.nii.gz"
    whole = path.read_bytes()
    garbled = whole[:40] + bytes(20) + whole[60:]
    for damaged in (b"", b"no image", whole[:60], garbled):
        path.write_bytes(damaged)
        found = evaluate_folders(tmp_path / "out", tmp_path / "ref", tmp_path / "o")
        assert [one["code"] for one in found.summary["refused"]] == ["undecodable"]


def test_sizes_are_compared_before_anything_is_read(tmp_path: Path) -> None:
    """The header promises 32767³ voxels; the file has none of them."""
    write_maps(tmp_path / "out", {"a_seg.nii.gz": TRUTH})
    write_maps(tmp_path / "ref", {"a.nii.gz": TRUTH})
    header = nibabel.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767, 3))
    header.set_sform(AFFINE, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(tmp_path / "out" / "a_probabilities.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(4))
    found = evaluate_folders(tmp_path / "out", tmp_path / "ref", tmp_path / "o")
    assert [one["code"] for one in found.summary["refused"]] == ["geometry-mismatch"]
