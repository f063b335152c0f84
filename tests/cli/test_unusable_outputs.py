"""A place that cannot be written is told in one line, with exit code 2, before the work, by every command."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from medseg.cli._app import command, terminal
from medseg.cli.main import app, load_commands
from medseg.errors import ExitCode, OutputUnusable
from medseg.files import atomic_path, prepare_file, prepare_folder
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, save

load_commands()

_COMMANDS = {
    "infer": "infer BUNDLE IMAGES -o FOLDER",
    "train": "train BUNDLE -o FOLDER",
    "evaluate": "evaluate IMAGES IMAGES -o FOLDER",
    "concord": "concord IMAGES IMAGES -o FOLDER",
    "index": "index IMAGES --database FILE",
    "demo": "demo --output FOLDER",
    "manifest create": "manifest create --images IMAGES -o FILE",
    "manifest split": "manifest split DATALIST --folds 2 --seed 0 --no-stratify -o FILE",
    "manifest download": "manifest download hippocampus -o FOLDER",
    "bundle new": "bundle new a_mr_b --datalist DATALIST -o FOLDER",
    "bundle pack": "bundle pack BUNDLE -o FILE",
    "bundle unpack": "bundle unpack DATALIST -o FOLDER",
    "bundle export": "bundle export BUNDLE --format onnx -o FILE",
    "bundle keygen": "bundle keygen FILE",
    "trust worklist": "trust worklist IMAGES -o FILE",
    "pacs fetch": "pacs fetch A@127.0.0.1:1 1.2 -o FOLDER",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bundle, two images and a datalist, and a file where a folder should be."""
    bundle = write_bundle(tmp_path / "bundle", Design(transforms=ORIENTED))
    trainer = {"_target_": "medseg.training.AdversarialSegmentationTrainer"}
    (bundle / "configs" / "train.json").write_text(json.dumps({"train": {"trainer": trainer}}))
    for number in range(2):
        save(blobs((8, 8, 8), number), grid("plain"), tmp_path / "images" / f"a{number}.nii.gz")
    items = [{"image": f"images/a{n}.nii.gz", "label": f"images/a{n}.nii.gz"} for n in range(2)]
    (tmp_path / "dl.json").write_text(json.dumps({"training": items}))
    (tmp_path / "taken").write_text("x")
    return tmp_path


def _call(line: str, place: Path, folder: Path, file: Path) -> Result:
    known = {"BUNDLE": "bundle", "IMAGES": "images", "DATALIST": "dl.json"}
    words = {**{name: place / part for name, part in known.items()}, "FOLDER": folder, "FILE": file}
    return CliRunner().invoke(app, [str(words.get(word, word)) for word in line.split()])


def _is_one_line(result: Result) -> bool:
    told = [line for line in result.stderr.splitlines() if line.startswith("medseg: ")]
    return result.exit_code == ExitCode.USAGE and len(told) == 1 and "Traceback" not in result.output


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_file_where_a_folder_should_be(name: str, place: Path) -> None:
    result = _call(_COMMANDS[name], place, place / "taken" / "out", place / "taken" / "out.bin")
    assert _is_one_line(result), result.output
    assert "taken" in result.stderr


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_name_that_is_too_long(name: str, place: Path) -> None:
    result = _call(_COMMANDS[name], place, place / ("x" * 300), place / ("x" * 300))
    assert _is_one_line(result), result.output
    assert (place / "taken").read_text() == "x"


def test_a_report_has_its_place_too(place: Path) -> None:
    (place / "images" / "report.html").mkdir()
    result = CliRunner().invoke(app, ["report", str(place / "images")])
    assert _is_one_line(result)
    assert "Is a directory" in result.stderr


def test_full_disks_and_devices_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputUnusable, match="not a regular file"):
        prepare_file("/dev/full")
    with pytest.raises(OSError, match="not a regular file"), atomic_path("/dev/null"):
        pass
    assert Path("/dev/null").is_char_device()
    (tmp_path / "kept.json").write_text("kept")
    assert prepare_file(tmp_path / "kept.json").read_text() == "kept"
    assert prepare_folder(tmp_path / "a" / "b").is_dir()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnusable, match="No space left on device; make room"):
        prepare_folder(tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(28, os.strerror(28), "/x/y\x1b[2J"), sqlite3.OperationalError("database or disk is full")]
)
def test_a_disk_that_gets_full_during_the_work_is_one_line(error: Exception) -> None:
    other = typer.Typer()

    @other.command()
    @command
    def work() -> None:
        raise error

    result = CliRunner().invoke(other, [])
    assert _is_one_line(result)
    assert "\x1b" not in result.stderr
    assert "make room" in result.stderr
    assert CliRunner().invoke(other, ["--debug"]).exception is error


def test_no_control_character_of_a_name_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("case")
    table.add_row("a\x1b[2Jb\udcff")
    terminal().print(table)
    terminal().print("a\x1b[2Jb\udcff\nnext")
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed
    assert "b?" in printed
    assert "next" in printed
    assert "\nnext" not in printed
