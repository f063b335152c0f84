"""``medseg train``."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli.main import app, load_commands
from tests.training.bundles import SMALL, copy_bundle, write_data

load_commands()

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


def _arguments(tmp_path: Path, bundle: Path) -> list[str]:
    arguments = ["train", str(bundle), "--datalist", str(tmp_path / "datalist.json"), "--dataset-dir", str(tmp_path)]
    for name, value in {**SMALL, "epochs": 1}.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    return [*arguments, "--output", str(tmp_path / "out"), "--fold", "0"]


def test_train_prints_lines_and_json(tmp_path: Path) -> None:
    write_data(tmp_path)
    bundle = copy_bundle(tmp_path)
    result = CliRunner().invoke(app, [*_arguments(tmp_path, bundle), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["epochs"] == 1
    assert printed["published"] is None
    assert not (bundle / "models").exists()
    assert "epoch 1/1" in result.stderr
    assert "min left" in result.stderr


def test_a_wrong_id_is_refused_with_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(copy_bundle(tmp_path)), "--set", "epoch=3"])
    assert result.exit_code == 2
    assert "did you mean epochs" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_teachers_come_first_and_are_told(tmp_path: Path) -> None:
    write_data(tmp_path)
    arguments = [*_arguments(tmp_path, copy_bundle(tmp_path)), "--set", "judge_steps=0", "--teachers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.index("teacher 1 of 1") < result.stdout.index("the network that learns from 1")
    assert "trained 1 epochs" in result.stdout
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["configuration"]["teachers"] == [str(tmp_path / "out" / "teachers" / "0" / "checkpoints" / "final.pt")]
    assert (tmp_path / "out" / "teachers" / "0" / "run.json").is_file()


def test_teachers_need_a_folder_of_their_own(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(copy_bundle(tmp_path)), "--teachers", "2"])
    assert result.exit_code == 2
    assert "say where, with --output" in result.stderr
