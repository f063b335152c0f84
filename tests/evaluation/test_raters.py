"""Several raters in an evaluation: the consensus, each of them, and how far they agree among themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli.main import app, load_commands
from medseg.errors import UsageError
from medseg.evaluation import evaluate_folders
from medseg.tables import read_table
from tests.evaluation.label_folders import write_maps

load_commands()


def three_raters(root: Path, way: str | None = None) -> tuple[Path, Path]:
    """A prediction like rater A's; B draws a slice less, C a slice more."""
    maps = {}
    for name, stop in (("a", 8), ("b", 7), ("c", 9)):
        labels = np.zeros((12, 10, 10), np.uint8)
        labels[2:stop, 2:8, 2:8] = 1
        maps[name] = labels
    write_maps(root / "ref", {f"{name}.nii.gz": labels for name, labels in maps.items()})
    write_maps(root / "out", {"case_seg.nii.gz": maps["a"], "image.nii.gz": maps["a"]})
    raters = [{"rater": name.upper(), "label": f"ref/{name}.nii.gz"} for name in maps]
    item = {"image": "out/image.nii.gz", "label": raters, "case_id": "case"}
    content = {"labels": {"1": "organ"}, "training": [item], **({} if way is None else {"raters": way})}
    (root / "datalist.json").write_text(json.dumps(content))
    return root / "out" / "case_seg.nii.gz", root / "datalist.json"


def dice(ours: int, theirs: int) -> float:
    return 2 * min(ours, theirs) / (ours + theirs)


@pytest.mark.parametrize(("way", "slices"), [(None, 6), ("majority", 6), ("staple", 6), ("draw", 6), ("B", 5)])
def test_the_prediction_is_scored_against_the_consensus_and_against_each(
    tmp_path: Path, way: str | None, slices: int
) -> None:
    prediction, datalist = three_raters(tmp_path, way)
    result = evaluate_folders(prediction, datalist, tmp_path / "scores")
    assert result.results[0].dice == pytest.approx(dice(6, slices))
    assert "of 3 raters" in result.summary["notes"][0]["note"]
    rows = {(row["compared"], row["with"]): row for row in read_table(tmp_path / "scores" / "raters.csv").rows}
    sizes = {"prediction": 6, "A": 6, "B": 5, "C": 7}
    expected = [("prediction", "A"), ("prediction", "B"), ("prediction", "C"), ("B", "A"), ("C", "A"), ("C", "B")]
    assert list(rows) == expected
    for pair, row in rows.items():
        assert float(row["dice"]) == pytest.approx(dice(*(sizes[who] for who in pair)))
        assert row["name"] == "organ"
    among = {(pair["compared"], pair["with"]): pair["structures"] for pair in result.summary["raters"]}
    assert among["C", "B"]["organ"]["metrics"]["dice"]["mean"] == pytest.approx(dice(7, 5))
    assert among["C", "B"]["organ"]["metrics"]["hd95_mm"]["mean"] == pytest.approx(2.0)


def test_the_command_shows_them(tmp_path: Path) -> None:
    prediction, datalist = three_raters(tmp_path)
    result = CliRunner().invoke(app, ["evaluate", str(prediction), str(datalist), "-o", str(tmp_path / "scores")])
    assert result.exit_code == 0, result.output
    assert "the raters among themselves" in result.output


def test_an_unknown_rater_is_refused(tmp_path: Path) -> None:
    prediction, datalist = three_raters(tmp_path, "Z")
    with pytest.raises(UsageError, match="expected one of draw, majority, staple, A, B, C"):
        evaluate_folders(prediction, datalist, tmp_path / "scores")


def test_what_a_rater_did_not_judge_is_no_disagreement(tmp_path: Path) -> None:
    """B leaves the last slice of A's organ out, A draws it: on what both judged they are equal."""
    prediction, datalist = three_raters(tmp_path, "majority")
    labels = np.zeros((12, 10, 10), np.uint8)
    labels[2:7, 2:8, 2:8], labels[7, 2:8, 2:8] = 1, 9
    write_maps(tmp_path / "ref", {"b.nii.gz": labels})
    content = json.loads(datalist.read_text())
    datalist.write_text(json.dumps({**content, "labels": {"organ": 1, "background": 0, "ignore": 9}}))
    evaluate_folders(prediction, datalist, tmp_path / "scores")
    rows = {(row["compared"], row["with"]): row for row in read_table(tmp_path / "scores" / "raters.csv").rows}
    assert float(rows["B", "A"]["dice"]) == float(rows["prediction", "B"]["dice"]) == 1.0
    assert float(rows["C", "B"]["dice"]) == pytest.approx(dice(6, 5))
