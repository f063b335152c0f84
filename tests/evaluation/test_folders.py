from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import CaseFailed, UsageError
from medseg.evaluation import Bootstrap, Definitions, Options, evaluate_folders, scoring
from medseg.evaluation.structures import Structures
from tests.evaluation.label_folders import LABELS, reference_map, two_folders, write_labels, write_maps

QUICK = Options(bootstrap=Bootstrap(resamples=100))


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as handle:
        return {(row["case_id"], row["name"]): row for row in csv.DictReader(handle)}


def test_a_perfect_case_beside_a_missed_one(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=QUICK)
    assert result.complete
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 6
    assert rows["perfect", "spleen"]["dice"] == "1.0"
    assert (rows["missed", "spleen"]["dice"], rows["missed", "spleen"]["hd95_mm"]) == ("0.0", "")
    assert rows["missed", "spleen"]["missed"] == "1"
    assert rows["shifted", "liver"]["hd_mm"] == "1.0"
    spleen = json.loads((tmp_path / "out" / "metrics.json").read_text())["structures"]["spleen"]
    assert (spleen["n"], spleen["n_missed"], spleen["n_invented"]) == (3, 1, 0)
    assert spleen["metrics"]["dice"]["n"] == 3
    assert spleen["metrics"]["hd95_mm"]["n"] == 2
    assert spleen["metrics"]["dice"]["mean"] < 0.6


def test_the_summary_states_policy_definitions_and_versions(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    evaluate_folders(predictions, references, tmp_path / "out", labels=write_labels(tmp_path), tolerance_mm=2.5)
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (summary["n_cases"], summary["n_unpaired"], summary["n_refused"]) == (3, 0, 0)
    assert (summary["n_missed"], summary["n_invented"]) == (1, 0)
    assert summary["definitions"]["tolerance_mm"] == 2.5
    assert "larger of both" in summary["definitions"]["percentile_rule"]
    assert "6-neighbour" in summary["definitions"]["surface"]
    assert summary["empty_masks"].keys() >= {"missed", "invented"}
    assert summary["versions"].keys() >= {"medseg", "numpy", "edt"}
    dice = summary["structures"]["liver"]["metrics"]["dice"]
    assert dice.keys() >= {"mean", "std", "median", "ci95", "n"}
    assert dice["ci95"][0] <= dice["mean"] <= dice["ci95"][1]


def test_what_has_no_partner_is_listed_and_makes_the_result_incomplete(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    (references / "missed.nii.gz").rename(references / "other.nii.gz")
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=QUICK)
    assert not result.complete
    assert result.summary["n_unpaired"] == 2
    assert result.summary["unpaired"] == {"predictions": ["missed"], "references": ["other"]}


def test_without_any_pair_nothing_is_written(tmp_path: Path) -> None:
    predictions = write_maps(tmp_path / "p", {"a.nii.gz": reference_map()})
    references = write_maps(tmp_path / "r", {"b.nii.gz": reference_map()})
    with pytest.raises(UsageError, match="called like"):
        evaluate_folders(predictions, references, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def spoiled(kind: str) -> Any:
    volume: Any = reference_map()
    if kind == "nan":
        volume = volume.astype(np.float32)
        volume[0, 0, 0] = np.nan
    elif kind == "label":
        volume[0, 0, 0] = 9
    elif kind == "shape":
        volume = volume[:-1]
    elif kind == "fraction":
        volume = volume * np.float32(0.3)
    return volume


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("nan", "non-finite"),
        ("label", "unexpected-labels"),
        ("shape", "geometry-mismatch"),
        ("fraction", "unexpected-labels"),
    ],
)
def test_an_unsound_prediction_is_refused_and_the_others_are_scored(kind: str, code: str, tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    write_maps(predictions, {"perfect_seg.nii.gz": spoiled(kind)})
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=QUICK)
    assert not result.complete
    assert [(case["case_id"], case["code"]) for case in result.summary["refused"]] == [("perfect", code)]
    assert {case for case, _ in rows_of(tmp_path / "out")} == {"missed", "shifted"}


@pytest.mark.parametrize(("offset_mm", "refused"), [(0.01, False), (0.5, True)])
def test_a_shifted_grid_is_refused_beyond_the_tolerance(offset_mm: float, refused: bool, tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    moved = np.diag([1.0, 1.0, 2.0, 1.0])
    moved[0, 3] = offset_mm
    write_maps(predictions, {"perfect_seg.nii.gz": reference_map()}, moved)
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=QUICK)
    assert [case["code"] for case in result.summary["refused"]] == ["geometry-mismatch"] * refused


def test_a_sheared_grid_is_measured_in_true_distances(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 1.0
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[3, 3, 3] = 1
    predictions = write_maps(tmp_path / "p", {"a.nii.gz": np.roll(truth, 1, axis=2)}, affine)
    references = write_maps(tmp_path / "r", {"a.nii.gz": truth}, affine)
    [row] = evaluate_folders(predictions, references, tmp_path / "out", options=QUICK).results
    assert row.hd_mm == pytest.approx(np.sqrt(5))
    assert row.volume_ml == pytest.approx(0.002)


def test_undeclared_labels_are_those_that_occur_anywhere(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    extra = reference_map()
    extra[0, 0, 0] = 5
    write_maps(predictions, {"perfect_seg.nii.gz": extra})
    result = evaluate_folders(predictions, references, tmp_path / "out", options=QUICK)
    assert list(result.summary["structures"]) == ["1", "2", "5"]
    invented = result.summary["structures"]["5"]
    assert (invented["n"], invented["n_invented"], invented["n_absent"]) == (1, 1, 2)
    assert len(result.results) == 9


def datalist(root: Path, references: Path) -> Path:
    items = [
        {"image": f"images/{path.name}", "label": f"references/{path.name}", "patient_id": who, "site": site}
        for path, who, site in zip(sorted(references.iterdir()), "pqq", ("north", "north", "south"), strict=True)
    ]
    labels = {str(label): name for label, name in LABELS.items()}
    (root / "list.json").write_text(json.dumps({"labels": {"0": "background", **labels}, "training": items}))
    return root / "list.json"


def test_a_datalist_brings_names_patients_and_subgroups(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    options = Options(bootstrap=QUICK.bootstrap, group_by="site")
    result = evaluate_folders(predictions, datalist(tmp_path, references), tmp_path / "out", options=options)
    assert result.summary["n_patients"] == 2
    groups = result.summary["subgroups"]["groups"]
    assert {group: table["liver"]["n"] for group, table in groups.items()} == {"north": 2, "south": 1}
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert '"p"' not in text.replace('"p": ', "")


def test_subgroups_by_an_unknown_column_are_an_error(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    with pytest.raises(UsageError, match="'scanner'"):
        evaluate_folders(predictions, references, tmp_path / "out", options=Options(group_by="scanner"))
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_a_datalist_stops_only_its_case(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    source = datalist(tmp_path, references)
    (references / "perfect.nii.gz").unlink()
    result = evaluate_folders(predictions, source, tmp_path / "out", options=QUICK)
    assert [(case["case_id"], case["code"]) for case in result.summary["refused"]] == [("perfect", "unreadable")]


def test_a_comparison_tests_both_result_sets(tmp_path: Path) -> None:
    truth = reference_map()
    names = [f"case{i}" for i in range(7)]
    references = write_maps(tmp_path / "r", {f"{name}.nii.gz": truth for name in names})
    good = write_maps(tmp_path / "good", {f"{name}_seg.nii.gz": truth for name in names})
    poor = write_maps(tmp_path / "poor", {f"{name}_seg.nii.gz": np.roll(truth, 1, axis=0) for name in names})
    result = evaluate_folders(good, references, tmp_path / "out", labels=LABELS, compare_with=poor, options=QUICK)
    comparison = json.loads((tmp_path / "out" / "metrics.json").read_text())["comparison"]
    dice = [test for test in comparison["tests"] if test["metric"] == "dice"]
    assert [test["name"] for test in dice] == ["liver", "spleen"]
    assert all(test["effect_size"] == 1.0 and test["n_pairs"] == 7 for test in dice)
    assert comparison["structures"]["liver"]["metrics"]["hd95_mm"]["mean"] == 1.0
    assert (tmp_path / "out" / "compared_metrics.csv").is_file()
    assert result.complete
    (poor / "case0_seg.nii.gz").unlink()
    result = evaluate_folders(good, references, tmp_path / "out", labels=LABELS, compare_with=poor, options=QUICK)
    assert result.summary["comparison"]["uncompared"] == ["case0"]
    assert not result.complete


def test_all_metrics_and_percentiles_follow_the_documented_columns(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    options = Options(definitions=Definitions(percentiles=(99.0,)), bootstrap=QUICK.bootstrap, all_metrics=True)
    evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=options)
    header = (tmp_path / "out" / "metrics.csv").read_text().splitlines()[0]
    assert "missed,invented,hd99_mm,specificity,masd_mm" in header


def test_progress_is_told_case_by_case(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    seen: list[tuple[int, int, str]] = []
    evaluate_folders(predictions, references, tmp_path / "out", options=QUICK, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "missed"), (2, 3, "perfect"), (3, 3, "shifted")]


@pytest.mark.slow
def test_worker_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, references = two_folders(tmp_path)
    evaluate_folders(predictions, references, tmp_path / "one", labels=LABELS, options=QUICK)
    monkeypatch.setattr(scoring, "POOL_PAYS_AFTER_SECONDS", -1.0)
    options = Options(bootstrap=QUICK.bootstrap, workers=2)
    evaluate_folders(predictions, references, tmp_path / "two", labels=LABELS, options=options)
    assert (tmp_path / "one" / "metrics.csv").read_bytes() == (tmp_path / "two" / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_worker_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "POOL_PAYS_AFTER_SECONDS", -1.0)
    monkeypatch.setattr(scoring, "partial", lambda *_, **__: os._exit)
    pairs: list[Any] = [1, 2, 3]
    with pytest.raises(CaseFailed, match="use fewer workers"):
        list(scoring.score_all(pairs, Structures(None, {}), 1.0, Definitions(), 2))
