"""``medseg manifest``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import manifest
from medseg.cli.main import app
from medseg.ingest import save_nifti
from tests.manifests.conftest import AFFINE, label_of, write_case

assert manifest


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for seed in range(6):
        write_case(tmp_path / "data", f"case_{seed}x", seed)
    return tmp_path / "data"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["manifest", *map(str, arguments)])
    return result.exit_code, result.output


def test_create_split_and_audit(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "lists" / "datalist.json"
    created = run("create", "--images", dataset / "imagesTr", "--labels", dataset / "labelsTr", "-o", file)
    assert created[0] == 0, created[1]
    assert "6 training" in created[1]
    assert run("split", file, "--folds", 3, "--seed", 0)[0] == 0
    items = json.loads(file.read_text())["training"]
    assert sorted(item["fold"] for item in items) == [0, 0, 1, 1, 2, 2]
    code, output = run("audit", file)
    assert code == 0, output
    assert "nothing blocks training" in output
    assert "no-licence" in output


def test_the_audit_blocks_what_must_not_be_trained_on(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "datalist.json"
    run("create", "--images", dataset / "imagesTr", "--labels", dataset / "labelsTr", "-o", file, "--licence", "CC0")
    moved = AFFINE + np.array([[0, 0, 0, 5.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    save_nifti(label_of(0), moved, dataset / "labelsTr" / "case_0x.nii.gz")
    result = CliRunner().invoke(app, ["manifest", "audit", str(file), "--json", "--quiet"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["blocks_training"] is True
    assert {"geometry-mismatch", "checksum-mismatch"} <= {finding["code"] for finding in content["findings"]}


def test_a_split_can_be_written_elsewhere(dataset: Path, tmp_path: Path) -> None:
    file, target = tmp_path / "a.json", tmp_path / "b.json"
    run("create", "--images", dataset / "imagesTr", "--labels", dataset / "labelsTr", "-o", file, "--no-checksums")
    before = file.read_text()
    assert run("split", file, "--folds", 2, "--test", 0.34, "--seed", 1, "-o", target, "--no-stratify")[0] == 0
    assert file.read_text() == before
    assert len(json.loads(target.read_text())["test"]) == 2


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    assert run("audit", tmp_path / "missing.json")[0] == 2
    assert run("create", "--images", tmp_path, "-o", tmp_path / "x.json")[0] == 2
    assert run("download", "appendix", "-o", tmp_path)[0] == 2
