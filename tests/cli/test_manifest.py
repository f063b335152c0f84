"""``medseg manifest``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import manifest
from medseg.cli._console import PlainConsole
from medseg.cli.main import app
from medseg.ingest import save_nifti
from tests.manifests.conftest import AFFINE, label_of, write_case
from tests.manifests.hospital import rtstruct, seg, series
from tests.manifests.test_structures import total_segmentator

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


def test_findings_are_whole_on_a_terminal_of_80_columns(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "d.json"
    assert run("create", "--images", dataset / "imagesTr", "--labels", dataset / "labelsTr", "-o", file)[0] == 0
    content = json.loads(file.read_text())
    content["training"][0]["image"] = f"gone/{'very-' * 12}long.nii.gz"
    file.write_text(json.dumps(content))
    console = PlainConsole(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    monkeypatch.setattr(manifest, "terminal", lambda: console)
    run("audit", file)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in said.splitlines()]
    assert any(line.startswith("error missing-file:") for line in lines), said
    assert "  → restore the file, or give the right --dataset-dir" in lines
    assert "\N{REPLACEMENT CHARACTER}" not in said
    assert "…" not in said
    assert max(map(len, lines)) <= 80


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


def test_names_of_rois_are_proposed_written_and_given_back(tmp_path: Path) -> None:
    for number, name in enumerate(("Liver", "LEBER")):
        slices = series(tmp_path / "export" / f"p{number}", str(number + 1), f"P{number}")
        rtstruct(tmp_path / "export" / f"rs{number}.dcm", slices, [name])
    call = ("create", "--images", tmp_path / "export", "-o", tmp_path / "d.json")
    code, said = run(*call)
    assert code == 1
    assert not (tmp_path / "d.json").exists()
    for words in ("the labels hold 2 names", "LEBER", "liver", f"--roi-table {tmp_path / 'd_rois.csv'}"):
        assert words in said
    code, said = run(*call)
    assert code == 2
    assert "is there already" in said
    code, said = run(*call, "--roi-table", tmp_path / "d_rois.csv")
    assert (code, "labels: 1 liver" in said) == (0, True)
    assert json.loads((tmp_path / "d.json").read_text())["roi_mapping"] == {"LEBER": "liver"}
    code, said = run("split", tmp_path / "d.json", "--folds", 2, "--seed", 0)
    assert (code, "folds of 1, 1 cases" in said) == (0, True)


def test_masks_are_chosen_by_name(tmp_path: Path) -> None:
    folder = total_segmentator(tmp_path / "ts", s1=("liver", "spleen", "aorta"), s2=("liver", "spleen", "aorta"))
    code, said = run("create", "--images", folder, "--label", "spleen", "--label", "liver", "-o", tmp_path / "d.json")
    assert (code, "labels: 1 spleen, 2 liver" in said) == (0, True)
    code, said = run("create", "--images", folder, "--label", "4=spleen", "--label", "liver", "-o", tmp_path / "d.json")
    assert (code, "--label liver has no value" in said) == (2, True)


def test_patterns_maps_and_merges(tmp_path: Path) -> None:
    for seed, patient in enumerate(("p1", "p2")):
        save_nifti(label_of(seed), AFFINE, tmp_path / patient / "MR_1.nii.gz")
        save_nifti(label_of(1) * 100, AFFINE, tmp_path / patient / "seg_1.nii.gz")
    where = ("--images", tmp_path, "--image", "{patient}/MR*.nii.gz", "--label", "{patient}/seg*.nii.gz")
    code, said = run("create", *where, "--map", "100=1,200=2", "--merge", "all=1,2", "-o", tmp_path / "d.json")
    assert (code, "labels: 1 all" in said) == (0, True)
    assert json.loads((tmp_path / "d.json").read_text())["label_mapping"] == {"2": 1, "100": 1, "200": 1}
    code, said = run("create", *where, "--merge", "all", "-o", tmp_path / "d.json")
    assert (code, "expected NAME=PART,PART" in said) == (2, True)


def test_review_writes_its_page(dataset: Path, tmp_path: Path) -> None:
    assert (
        run(
            "create",
            "--images",
            dataset / "imagesTr",
            "--labels",
            dataset / "labelsTr",
            "--label",
            "1=block",
            "--label",
            "2=dot",
            "-o",
            tmp_path / "d.json",
        )[0]
        == 0
    )
    code, said = run("review", tmp_path / "d.json", "-o", tmp_path / "out", "--no-viewer")
    assert (code, "labels by judgement: 6 open" in said) == (0, True)
    assert (tmp_path / "out" / "labels.html").is_file()
    (dataset / "labelsTr" / "case_0x.nii.gz").unlink()
    code, said = run("review", tmp_path / "d.json", "-o", tmp_path / "out", "--no-viewer", "--no-audit")
    assert (code, "1 cannot be read" in said) == (1, True)


def test_overlaps_are_decided_by_an_order(tmp_path: Path) -> None:
    slices = series(tmp_path / "study" / "ct", "1")
    seg(tmp_path / "study" / "seg.dcm", slices, {"liver": slice(0, 3), "tumour": slice(2, 4)})
    call = ("create", "--images", tmp_path / "study", "--write-labels", tmp_path / "maps", "-o", tmp_path / "d.json")
    code, said = run(*call)
    assert code == 2
    for words in ("overlapping-labels", "label_reading"):
        assert words in said.replace("\n", " ")
    code, said = run(*call, "--reading", "order=liver,tumour")
    assert (code, said.count("1 training")) == (0, 1)
    assert list((tmp_path / "maps").iterdir())
    for wrong, words in (
        ("order", "expected KEY=VALUE"),
        ("sort=a", "holds 'sort'"),
        ("threshold=2", "a share above 0"),
    ):
        code, said = run(*call, "--reading", wrong)
        assert (code, words in said) == (2, True)
