"""Regions that overlap, ignored voxels, structures that were not looked for: scored as a hand counts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.cli.main import app, load_commands
from medseg.errors import UsageError
from medseg.evaluation import evaluate_folders
from medseg.evaluation.case import NOT_ANNOTATED, Reference, evaluate_case
from medseg.evaluation.structures import read_scheme
from medseg.evaluation.tables import read_csv
from medseg.ingest import save_nifti
from tests.labels.objects import save, segmentation, series

_TABLE = {"background": 0, "whole": [1, 2], "core": 2}


def _pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reference: a bar of 8 voxels, core of 4. Prediction: core moved by one, one voxel of the rim lost."""
    reference, prediction = np.zeros((3, 3, 12), np.uint8), np.zeros((3, 3, 12), np.uint8)
    reference[1, 1, 2:10], reference[1, 1, 4:8] = 1, 2
    prediction[1, 1, 3:10], prediction[1, 1, 5:9] = 1, 2
    return prediction, reference


def _dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    return 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_dice_of_regions_is_that_of_a_hand() -> None:
    prediction, reference = _pair()
    truth = Reference({1: (1, 2), 2: (2,)})
    whole, core = evaluate_case(prediction, reference, (1, 1, 1), {1: "whole", 2: "core"}, truth=truth)
    assert whole.dice == pytest.approx(14 / 15) == _dice(prediction > 0, reference > 0)
    assert core.dice == pytest.approx(6 / 8) == _dice(prediction == 2, reference == 2)
    assert (whole.hd_mm, whole.missed, whole.invented) == (1.0, False, False)
    missed, _ = evaluate_case(prediction * 0, reference, (1, 1, 1), {1: "whole", 2: "core"}, truth=truth)
    assert (missed.missed, missed.dice) == (True, 0.0)


def test_ignored_voxels_count_on_neither_side() -> None:
    prediction, reference = _pair()
    reference[1, 1, 9:] = 7
    truth = Reference({1: (1, 2), 2: (2,)}, ignore=7)
    whole, core = evaluate_case(prediction, reference, (1, 1, 1), {1: "whole", 2: "core"}, truth=truth)
    assert whole.dice == pytest.approx(12 / 13)
    assert core.dice == pytest.approx(6 / 8)
    everything = np.full_like(reference, 7)
    assert all(row.absent for row in evaluate_case(prediction, everything, (1, 1, 1), {1: "a", 2: "b"}, truth=truth))


def _save(folder: Path, name: str, array: NDArray[Any]) -> None:
    folder.mkdir(exist_ok=True)
    save_nifti(array, np.eye(4), folder / name)


def test_a_datalist_says_what_overlaps_and_what_is_not_known(tmp_path: Path) -> None:
    prediction, reference = _pair()
    for case in "ab":
        _save(tmp_path / "pred", f"{case}.nii.gz", prediction)
    _save(tmp_path / "ref", "a.nii.gz", np.where(np.arange(12) >= 9, 7, reference).astype(np.uint8))
    _save(tmp_path / "ref", "b.nii.gz", np.where(reference, 1, 0).astype(np.uint8))
    items = [{"image": f"ref/{case}.nii.gz", "label": f"ref/{case}.nii.gz"} for case in "ab"]
    items[1]["annotated"] = ["whole"]  # type: ignore[assignment]
    content = {"labels": {**_TABLE, "ignore": 7}, "training": items}
    (tmp_path / "list.json").write_text(json.dumps(content))
    found = evaluate_folders(tmp_path / "pred", tmp_path / "list.json", tmp_path / "scores")
    dice = {(row.case_id, row.name): row.dice for row in found.results}
    assert dice["a", "whole"] == pytest.approx(12 / 13)
    assert dice["a", "core"] == pytest.approx(6 / 8)
    assert dice["b", "whole"] == pytest.approx(14 / 15)
    assert dice["b", "core"] is None
    again = {(row.case_id, row.name): row for row in read_csv(tmp_path / "scores" / "metrics.csv")}
    assert again["b", "core"].not_scored == NOT_ANNOTATED
    assert not any(again["b", "core"].values.values())  # empty cells, not 0
    assert found.summary["n_not_annotated"] == 1
    assert found.summary["structures"]["core"]["n"] == 1
    assert any("not annotated, so not scored: core in 1 case" in warning for warning in found.summary["warnings"])
    assert any("judged by nobody" in note["note"] for note in found.summary["notes"])


def test_a_table_of_regions_may_be_asked_for(tmp_path: Path) -> None:
    """Regions beside parts of their own, which one label map could not paint apart, are scored none the less."""
    prediction, reference = _pair()
    _save(tmp_path / "pred", "a.nii.gz", prediction)
    _save(tmp_path / "ref", "a.nii.gz", reference)
    (tmp_path / "labels.json").write_text(json.dumps({"background": 0, "whole": [1, 2], "rim": 1, "core": 2}))
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "o", labels=tmp_path / "labels.json")
    dice = {row.name: row.dice for row in found.results}
    assert dice == {
        "whole": pytest.approx(14 / 15),
        "rim": pytest.approx(_dice(prediction == 1, reference == 1)),
        "core": pytest.approx(6 / 8),
    }


def test_sides_that_make_a_region_of_other_values_are_refused(tmp_path: Path) -> None:
    prediction, reference = _pair()
    for side, whole in (("pred", [1, 2, 3]), ("ref", [1, 2])):
        _save(tmp_path / side, "a.nii.gz", prediction if side == "pred" else reference)
        table = {"labels": {"whole": whole, "core": 2}, "regions_class_order": [1, 2]}
        (tmp_path / side / "dataset.json").write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"the region 'whole' of the values 1, 2 and 3.*of 1 and 2"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "o")


def test_a_bundles_output_declares_regions(tmp_path: Path) -> None:
    output = {"channel_def": {"0": "whole", "1": "core"}, "labels": _TABLE, "regions_class_order": [1, 2]}
    (tmp_path / "configs").mkdir()
    described = {"network_data_format": {"outputs": {"pred": output}}}
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(described))
    assert read_scheme(tmp_path).members == {1: (1, 2), 2: (2,)}


@pytest.mark.parametrize("table", [{**_TABLE, "order": [1, 2]}, {**_TABLE, "rim": 1}])
def test_overlapping_segments_are_regions_on_both_sides(tmp_path: Path, table: dict[str, Any]) -> None:
    """Of a bundle's table, and of one for scoring alone, whose regions one label map could not paint apart."""
    order = table.pop("order", None)
    described = {"network_data_format": {"outputs": {"pred": {"labels": table, "regions_class_order": order}}}}
    (tmp_path / "b" / "configs").mkdir(parents=True)
    (tmp_path / "b" / "configs" / "metadata.json").write_text(json.dumps(described))
    of = series(tmp_path / "series", shape=(12, 8, 6))
    masks: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for side, moved in (("pred", 1), ("ref", 0)):
        (tmp_path / side).mkdir()
        whole, core = np.zeros((2, 12, 8, 6), bool)
        whole[2 + moved : 10, 3, 2:4], core[4 + moved : 8 + moved, 3, 2:4] = True, True
        masks[side] = {"whole": whole, "core": core} | ({"rim": whole & ~core} if "rim" in table else {})
        save(segmentation(of, masks[side]), tmp_path / side / "a.dcm")
    load_commands("evaluate")
    command = ["evaluate", *(str(tmp_path / name) for name in ("pred", "ref")), "-o", str(tmp_path / "o")]
    done = CliRunner().invoke(app, [*command, "--labels", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    rows = {row.name: row.dice for row in read_csv(tmp_path / "o" / "metrics.csv")}
    assert rows == {name: pytest.approx(_dice(mask, masks["ref"][name])) for name, mask in masks["pred"].items()}


def test_a_region_outside_the_one_that_holds_it_is_noted(tmp_path: Path) -> None:
    """No value means core without whole: nnU-Net's rule makes it whole, too, and that is said."""
    of = series(tmp_path / "series")
    core = np.zeros(of.geometry.shape, bool)
    core[2:5, 3, 2] = True
    for side in ("pred", "ref"):
        (tmp_path / side).mkdir()
        save(segmentation(of, {"core": core}), tmp_path / side / "a.dcm")
    (tmp_path / "labels.json").write_text(json.dumps(_TABLE))
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "o", labels=tmp_path / "labels.json")
    assert {row.name: row.dice for row in found.results} == {"whole": 1.0, "core": 1.0}
    assert "3 voxels of core alone, which no value means, count as whole and core" in found.summary["notes"][0]["note"]
