from __future__ import annotations

import ast
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import UsageError
from medseg.results import CaseResult, RunReport, StructureVolume
from medseg.results.state_file import STATE_NAME
from medseg.results.verdict import Interval
from medseg.tables import read_table

STRUCTURES = [{"label": 1, "name": "liver", "volume_ml": 1.0}]


def entry(case_id: str, **more: Any) -> dict[str, Any]:
    outputs = [f"{case_id}_seg.nii.gz", f"{case_id}_doubt.nii.gz"]
    return {"case_id": case_id, "source": "x", "status": "done", "outputs": outputs, "structures": STRUCTURES, **more}


def test_a_run_tells_its_label_maps_from_its_other_files(tmp_path: Path) -> None:
    refused = entry("b", status="refused", outputs=[])
    own_image = entry("c", source=str(tmp_path / "c.nii.gz"), trained_on=True)
    (tmp_path / "run.json").write_text(json.dumps({"cases": [entry("a_doubt"), refused, own_image]}))
    run = RunReport.find(tmp_path)
    assert run is not None
    assert run.label_maps == {"a_doubt_seg.nii.gz": "a_doubt", "c_seg.nii.gz": "c"}
    assert set(run.others) == {"a_doubt_doubt.nii.gz", "b_seg.nii.gz", "c.nii.gz", "c_doubt.nii.gz"}
    assert run.names == {1: "liver"}
    assert [case.trained_on for case in run.cases] == [None, None, True]


def test_the_journal_of_a_run_that_was_killed_is_read(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / STATE_NAME)) as connection, connection:
        connection.execute("CREATE TABLE cases (case_id TEXT, result TEXT)")
        connection.executemany("INSERT INTO cases VALUES (?, ?)", [("a", json.dumps(entry("a"))), ("b", None)])
    run = RunReport.find(tmp_path)
    assert run is not None
    assert run.label_maps == {"a_seg.nii.gz": "a"}
    assert run.content == {}


@pytest.mark.parametrize("content", [None, "[]", '{"epochs": 3}'])
def test_a_folder_of_anything_else_is_no_run(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert RunReport.find(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["", "{", '{"cases": 3}', '{"cases": [3]}', '{"cases": [{"case_id": 4}]}', "[" * 9999]
)
def test_a_damaged_run_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json"):
        RunReport.read(tmp_path)


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / ".medseg-journal.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match="journal"):
        RunReport.find(tmp_path)


def test_intervals_are_in_both_files_where_a_run_has_them(tmp_path: Path) -> None:
    bounded = StructureVolume(1, "liver", 10.0, interval=Interval(9.0, 12.5, 0.9))
    cases = (CaseResult("a", structures=(bounded,)), CaseResult("b", structures=(StructureVolume(1, "liver", 0.0),)))
    RunReport(tmp_path, (*cases, CaseResult("c", status="refused"))).write()
    assert RunReport.read(tmp_path).cases[:2] == cases
    stated = json.loads((tmp_path / "run.json").read_text())["cases"]
    assert stated[0]["structures"][0]["interval"] == {"low_ml": 9.0, "high_ml": 12.5, "coverage": 0.9}
    assert "interval" not in stated[1]["structures"][0]
    rows = read_table(tmp_path / "results.csv").rows
    columns = ("liver_volume_ml", "liver_volume_low_ml", "liver_volume_high_ml")
    found = [tuple(row[name] for name in columns) for row in rows]
    assert found == [("10.0", "9.0", "12.5"), ("0.0", "", ""), ("", "", "")]
    RunReport(tmp_path, cases[1:]).write()
    assert "liver_volume_low_ml" not in (tmp_path / "results.csv").read_text()


GOOD = {"low_ml": 1.0, "high_ml": 2.0, "coverage": 0.9}


@pytest.mark.parametrize(
    "interval",
    [3, [1, 2], {"low_ml": 1.0}, {**GOOD, "low_ml": -1.0}, {**GOOD, "low_ml": "1"}, {**GOOD, "coverage": 90}],
)
def test_an_interval_of_another_form_is_named(interval: Any, tmp_path: Path) -> None:
    case = entry("a", structures=[{**STRUCTURES[0], "interval": interval}])
    (tmp_path / "run.json").write_text(json.dumps({"cases": [case]}))
    with pytest.raises(UsageError, match="interval"):
        RunReport.read(tmp_path)


RUN_KEYS = {"predicted_dice", "lower_bound", "verdict", "verdicts", "look_at_mm", "case_class", "not_written"} | {
    "workers_lost",
    "stages_seconds",
    "computed",
    "pending",
}
"""Keys of run.json that no other file of medseg has."""


def keys_of(tree: ast.AST) -> Iterator[object]:
    """Constants that are taken for keys: in brackets, in ``get`` and the like, in an object that is written down."""
    for node in ast.walk(tree):
        keys: list[ast.expr | None] = []
        if isinstance(node, ast.Subscript):
            keys = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"get", "pop"}:
            keys = list(node.args[:1])
        elif isinstance(node, ast.Dict):
            keys = node.keys
        yield from (key.value for key in keys if isinstance(key, ast.Constant))


def test_keys_of_run_json_are_spelled_in_results_alone() -> None:
    root = Path(__file__).parents[2]
    files = (path for path in sorted((root / "medseg").rglob("*.py")) if path.parent.name != "results")
    spelled = {
        str(path.relative_to(root))
        for path in files
        if RUN_KEYS.intersection(filter(lambda key: isinstance(key, str), keys_of(ast.parse(path.read_text()))))
    }
    assert not spelled, "they take the records"
