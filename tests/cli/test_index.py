"""``medseg index``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli import index
from medseg.cli.main import app
from tests.ingest.trees import IDENTITIES, write_series

assert index


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "studies"
    write_series(root / "a", "1")
    write_series(root / "b", "2", SeriesDescription="T1 post", Modality="MR", ContrastBolusAgent="Gd")
    return root


def test_usable_series_are_listed(tree: Path) -> None:
    result = CliRunner().invoke(app, ["index", str(tree)])
    assert result.exit_code == 0, result.output
    assert "2 found, 2 usable, 0 refused" in result.output
    assert "4×3×6" in result.output


def test_a_refused_series_is_named_and_makes_the_exit_code_1(tree: Path) -> None:
    (tree / "a" / "I1-2").unlink()
    result = CliRunner().invoke(app, ["index", str(tree)])
    assert result.exit_code == 1
    assert "missing-slices" in result.output


def test_json_is_one_object_without_identity(tree: Path, tmp_path: Path) -> None:
    database = tmp_path / "index.sqlite"
    for _ in range(2):
        result = CliRunner().invoke(app, ["index", str(tree), "--database", str(database), "--json", "--quiet"])
        content = json.loads(result.stdout)
        assert content["found"] == 2
        assert {record["modality"] for record in content["records"]} == {"CT", "MR"}
        assert not any(planted in result.stdout for planted in IDENTITIES)
    assert database.exists()


def test_selection_says_what_is_chosen_and_why_not(tree: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"rules": [{"channel": "t1c", "modality": "MR", "contrast": True}]}))
    result = CliRunner().invoke(app, ["index", str(tree), "--select", str(rules), "--json", "--quiet"])
    explanations = {choice["channel"]: choice["explanation"] for choice in json.loads(result.stdout)["choices"]}
    assert explanations["t1c"] == "chosen as t1c"
    assert "modality is CT, expected MR" in explanations[None]


def test_a_missing_path_is_wrong_usage(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["index", str(tmp_path / "missing")]).exit_code == 2
