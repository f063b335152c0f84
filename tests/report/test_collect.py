from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import UsageError
from medseg.evaluation.tables import measured_dice, read_csv, write_csv
from medseg.report import write_report
from medseg.report.collect import collect
from medseg.results import RunReport, write_worklist
from medseg.results.worklist import WorklistRow
from tests.report.report_folders import Folders


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("found 19 of 20 slices, expected all", "found 19 of 20 slices, expected all"),
        ("/in/Doe, Jane: found no pixels", "case_1: found no pixels"),
        ("/in/Doe, Jane/x y z: found no pixels", ""),
        ("Doe_Jane.dcm: found no pixels", ""),
        ("C:\\in\\Doe Jane: found no pixels", ""),
    ],
)
def test_messages_that_name_a_file_are_not_shown(tmp_path: Path, message: str, shown: str) -> None:
    item = {
        "case_id": "case_1",
        "source": "/in/Doe, Jane",
        "status": "refused",
        "reason": "no-pixel-data",
        "message": message,
    }
    (tmp_path / "run.json").write_text(json.dumps({"cases": [item]}))
    assert collect(tmp_path).cases[0].message == shown


def _worklist(folder: Path) -> list[WorklistRow]:
    return write_worklist(RunReport.read(folder), folder / "worklist.csv", measured_dice(folder))


def test_the_miss_is_first_and_counted(page: Path, folders: Folders) -> None:
    study = collect(folders.results, None, folders.references)
    assert study.cases[0].case_id == "case_zz_missed"
    assert study.cases[-1].status == "refused"
    assert re.search(r'<span class="figure">1</span><span class="what">missed</span>', page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("measured", [True, False])
def test_the_worklist_has_the_order_of_the_report(folders: Folders, measured: bool, tmp_path: Path) -> None:
    shutil.copy(folders.results / "run.json", tmp_path)
    if measured:
        shutil.copy(folders.results / "metrics.csv", tmp_path)
    rows = _worklist(tmp_path)
    listed = [case.case_id for case in collect(tmp_path).cases if case.status == "done"]
    assert [row.case_id for row in rows] == listed
    assert ("against the reference" in rows[0].why) == measured


def test_an_evaluation_that_names_cases_otherwise_is_merged_with_its_run(folders: Folders, tmp_path: Path) -> None:
    shutil.copy(folders.results / "run.json", tmp_path)
    rows = [row for row in read_csv(folders.results / "metrics.csv") if row.case_id == "case_00"]
    write_csv(tmp_path / "metrics.csv", [replace(row, case_id="patient zero") for row in rows])
    named = {"case_id": "patient zero", "prediction": "p", "reference": "r", "prediction_case_id": "case_00"}
    (tmp_path / "metrics.json").write_text(json.dumps({"cases": [named], "trained_on": {"n": 1, "of": 1}}))
    study = collect(tmp_path)
    assert "patient zero" not in {case.case_id for case in study.cases}
    assert next(case for case in study.cases if case.case_id == "case_00").dice
    assert [row.case_id for row in _worklist(tmp_path)] == [c.case_id for c in study.cases if not c.reason]


@pytest.mark.parametrize("spoil", [{"structures": 3}, {"trust": {"look_at_mm": ["x", 0, 0]}}, {"trust": [1]}])
def test_a_case_in_another_form_is_named(spoil: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"cases": [{"case_id": "a", **spoil}]}))
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("run.json", "[]"), ("metrics.csv", "a,b\n1,2\n")])
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        write_report(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
