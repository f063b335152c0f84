from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from medseg.errors import UsageError
from medseg.report import write_report
from medseg.report.training import read_training
from medseg.tables import table_text

RUN = {
    "status": "done",
    "bundle": {"name": "liver_ct", "version": "1.2"},
    "device": "cpu",
    "precision": {"used": "bf16"},
    "seed": 7,
    "inputs": {"datalist": "/data/Doe^Jane/list.json"},
    "parts": [],
    "result": {"best_metric": 0.91, "best_epoch": 2, "seconds": 90.0},
}
COLUMNS = ("epoch", "seconds", "learning_rate", "loss", "val_dice", "val_hd95_mm", "val_dice_missed")
ROWS = ((1, 30, 0.1, 2.5, None, None, None), (2, 60, 0.1, 1.5, 0.91, 4.5, 1), (3, 90, 0.05, 1.25, 0.9, None, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "metrics.csv").write_text(table_text([COLUMNS, *ROWS]))
    (tmp_path / "samples").mkdir()
    for epoch in range(1, 14):
        Image.new("RGB", (4, 4)).save(tmp_path / "samples" / f"epoch-{epoch:04d}.png")
    return tmp_path


def test_a_training_has_curves_samples_and_facts(folder: Path) -> None:
    text = write_report(folder).read_text(encoding="utf-8")
    for words in ("<h1>Liver ct</h1>", "liver_ct 1.2", "bf16", '<span class="figure">0.910</span>', "epoch 2"):
        assert words in text
    for title in ("Losses", "Validation, scores", "Validation, distances [mm]", "missed and invented", "Learning rate"):
        assert title in text
    assert "Discriminator accuracy" not in text
    assert text.count('class="knot') == 3 + 2 + 1 + 2 + 3  # a dot for every value there is
    assert text.count('<img src="data:image/png;base64,') == 5
    assert text.index("epoch 0013") < text.index("epoch 0010")
    assert "Doe^Jane" not in text
    assert "There are no cases" not in text


def test_only_what_there_is_is_shown(folder: Path) -> None:
    (folder / "metrics.csv").unlink()
    (folder / "run.json").write_text(json.dumps({**RUN, "status": "failed", "reason": "disk-full", "result": None}))
    text = write_report(folder, title="Try").read_text(encoding="utf-8")
    assert "failed (disk-full)" in text
    assert 'id="curves"' not in text


def test_a_training_without_a_record_is_known_by_its_table(folder: Path) -> None:
    (folder / "run.json").unlink()
    training = read_training(folder)
    assert training is not None
    assert [epoch["epoch"] for epoch in training.epochs] == [1, 2, 3]
    assert "<h1>Training</h1>" in write_report(folder).read_text(encoding="utf-8")


def test_how_an_unrecorded_training_ended_is_not_known(folder: Path) -> None:
    (folder / "run.json").unlink()
    page = write_report(folder).read_text(encoding="utf-8")
    assert "whether it has reached its last iteration is not known" in page


@pytest.mark.parametrize(
    ("name", "text"), [("run.json", json.dumps({**RUN, "device": 3})), ("metrics.csv", "epoch,loss\n1,much\n")]
)
def test_damaged_files_are_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        write_report(folder)


@pytest.mark.parametrize("run", [{"cases": []}, {"something": "else"}, []])
def test_other_folders_are_no_trainings(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_training(tmp_path) is None


def test_the_command_takes_a_training(folder: Path) -> None:
    from medseg.cli.main import app, load_commands

    load_commands()

    result = CliRunner().invoke(app, ["report", str(folder), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["report"].endswith("report.html")
