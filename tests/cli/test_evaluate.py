from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medseg.cli._console import PlainConsole
from medseg.cli._evaluation_tables import show_evaluation
from medseg.cli.main import app, load_commands
from medseg.evaluation import Definitions, Options, evaluate_folders
from tests.evaluation.label_folders import AFFINE, LABELS, reference_map, two_folders, write_labels, write_maps

load_commands()


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return two_folders(tmp_path)


def test_tables_name_what_was_missed_and_the_worst_cases(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, "-o", tmp_path / "out", "--labels", write_labels(tmp_path))
    assert result.exit_code == 0, result.output
    assert "1 structures missed, 0 invented" in result.output
    [spleen] = [line for line in result.output.splitlines() if line.startswith("spleen")]
    assert spleen.split()[:4] == ["spleen", "3", "1", "0"]
    worst = next(line for line in result.output.splitlines() if line.startswith("missed "))
    assert worst.split()[:3] == ["missed", "spleen", "0.000"]
    assert worst.rstrip().endswith("missed")
    assert (tmp_path / "out" / "metrics.csv").is_file()
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_nothing_is_cut_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    """Lesions, raters with long names, a structure with a long one."""
    reference, long = np.zeros((12, 12, 12), np.uint8), "left_lower_pulmonary_lobe_with_a_long_name"
    reference[2:6, 2:6, 2:6], reference[8:11, 8:11, 8:11] = 1, 2
    case = "patient-with-a-long-identifier_portal-venous"
    shifted = np.roll(reference, 1, 0)
    write_maps(tmp_path / "pred", {"case_seg.nii.gz": shifted})
    write_maps(tmp_path, {"a.nii.gz": reference, "b.nii.gz": shifted})
    raters = [{"rater": "Dr Katharina Musterfrau", "label": "a.nii.gz"}, {"rater": "B", "label": "b.nii.gz"}]
    item = {"image": "a.nii.gz", "label": raters, "case_id": "case"}
    content = {"labels": {"background": 0, "liver": 1, long: 2}, "training": [item]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    lesions = Options(definitions=Definitions(lesion_iou=0.5))
    result = evaluate_folders(tmp_path / "pred", tmp_path / "datalist.json", tmp_path / "out", options=lesions)
    renamed = [replace(row, case_id=case) for row in result.results]
    console = PlainConsole(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    show_evaluation(console, replace(result, results=renamed))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert "\N{REPLACEMENT CHARACTER}" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "prediction Dr Katharina Musterfrau 0.750" in " ".join(shown.split())


def test_json_is_one_object_on_stdout(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, "-o", tmp_path / "out", "--json")
    printed = json.loads(result.stdout)
    assert printed["structures"]["2"]["n_missed"] == 1
    assert "worst cases" in result.stderr


def test_quiet_prints_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert run(*folders, "-o", tmp_path / "out", "--quiet").output == ""


def test_a_case_without_partner_makes_the_exit_code_1(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "perfect_seg.nii.gz").unlink()
    result = run(*folders, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "1 references without a partner: perfect" in result.output


def test_a_refused_case_makes_the_exit_code_1_and_says_why(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('{"1": "liver"}')
    result = run(*folders, "-o", tmp_path / "out", "--labels", labels)
    assert result.exit_code == 1
    assert "refused perfect: [unexpected-labels]" in result.output


@pytest.mark.parametrize("missing", ["predictions", "references", "labels"])
def test_what_does_not_exist_is_a_usage_error(missing: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    predictions, references = folders
    arguments = {
        "predictions": (nowhere, references),
        "references": (predictions, nowhere),
        "labels": (predictions, references, "--labels", nowhere),
    }[missing]
    result = run(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_scored_is_told_and_makes_the_exit_code_1(tmp_path: Path) -> None:
    for side in ("p", "r"):
        write_maps(tmp_path / side, {f"{case}.nii.gz": reference_map() * np.uint8(0) for case in "abc"})
    result = run(tmp_path / "p", tmp_path / "r", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no structure was scored: all masks are empty on both sides" in result.output.replace("\n", " ")
    assert "0 patients" not in result.output


def test_what_was_done_without_being_asked_is_told(tmp_path: Path) -> None:
    flipped = AFFINE @ np.array([[-1.0, 0, 0, 13], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    predictions = write_maps(tmp_path / "p", {"a_pred.nii.gz": reference_map()[::-1].copy()}, flipped)
    write_maps(predictions, {"a_uncertainty.nii.gz": reference_map()})
    structures = [{"label": label, "name": name} for label, name in LABELS.items()]
    case = {"case_id": "a_pred", "outputs": [], "structures": structures, "trained_on": True}
    (predictions / "run.json").write_text(json.dumps({"cases": [case]}))
    result = run(predictions, write_maps(tmp_path / "r", {"a.nii.gz": reference_map()}), "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "(LAS) were put in the order and direction of the reference's (RAS); no value was changed (a)" in told
    assert "1 case(s) paired by names that differ: a_pred with a" in told
    assert "no label maps: a_uncertainty.nii.gz" in told
    assert "1 of 1 cases was used to train this model: these figures say nothing about new cases" in told
    assert "liver" in told


def test_an_unknown_definition_is_a_usage_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, "-o", tmp_path / "out", "--surface", "triangles")
    assert result.exit_code == 2
    assert "elements" in result.stderr


def test_a_comparison_is_shown(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, "-o", tmp_path / "out", "--compare", folders[1])
    assert result.exit_code == 0, result.output
    assert "Wilcoxon" in result.output
    assert "too few" in result.output


def test_definitions_can_be_chosen(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(
        *folders,
        "-o",
        tmp_path / "out",
        "--percentile-rule",
        "pooled",
        "--surface",
        "elements",
        "--all-metrics",
        "--json",
    )
    choices = json.loads(result.stdout)["definitions"]["choices"]
    assert (choices["percentile_rule"], choices["surface"]) == ("pooled", "elements")
    assert "masd_mm" in (tmp_path / "out" / "metrics.csv").read_text().splitlines()[0]


def test_neither_torch_nor_monai_is_imported(folders: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys; from medseg.evaluation import evaluate_folders;"
        f"evaluate_folders({str(folders[0])!r}, {str(folders[1])!r}, {str(tmp_path / 'out')!r});"
        "print([m for m in ('torch', 'monai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
