"""What README, docs, demo and generated READMEs tell a person to type is understood; the walk runs word for word."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli.demo import NEXT
from medseg.cli.main import app, load_commands
from tests.planning.test_create import write_dataset

load_commands()

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("bundles/*/docs/README.md"))]
_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_OPEN = ("…", "...", "[")
"""What stands for something left out."""


def _commands(text: str) -> Iterator[str]:
    """Commands in the fenced blocks of a page, without the words behind them; `…` leaves something out."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\s*(\$ )?medseg [a-z]", line):
                yield re.split(r"\s+#|\s{3,}(?=[a-z])", line.strip().removeprefix("$ "))[0].strip()


def _problem(line: str) -> str:
    """What is wrong with the words of a command line, by the parser of the command itself; empty if nothing is."""
    command: Any = typer.main.get_command(app)
    arguments, context = shlex.split(line)[1:], None
    try:
        while True:
            context = command.make_context(command.name, list(arguments), parent=context)
            if not hasattr(command, "resolve_command"):
                return ""
            _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    except typer.Exit:
        return ""
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_on_a_page_is_understood(page: Path) -> None:
    lines = [line for line in _commands(page.read_text()) if not any(part in line for part in _OPEN)]
    assert {line: problem for line in lines if (problem := _problem(line))} == {}


def test_a_command_that_is_not_understood_is_noticed() -> None:
    assert "--outptu" in _problem("medseg infer b i --outptu o")
    assert "No such command" in _problem("medseg bundle nwe")
    assert "Missing argument" in _problem("medseg report")


def test_the_pages_have_commands() -> None:
    assert sum(len(list(_commands(page.read_text()))) for page in PAGES) > 60


def _run(line: str) -> None:
    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.stderr}"


def _shorten(folder: Path) -> None:
    """A training of two steps: the walk is about the commands."""
    for name in ("train", "inference"):
        path = folder / "configs" / f"{name}.json"
        config = json.loads(path.read_text())
        widths = "features" if "features" in config["network_def"] else "filters"  # BasicUNet or DynUNet, as planned
        config["network_def"][widths] = [4] * len(config["network_def"][widths])
        if name == "train":
            config.update(epochs=1, iterations=2, batch_size=1, val_interval=1)
            config["discriminator_def"]["channels"] = 4
        path.write_text(json.dumps(config))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, labels of the same names, and studies."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data", cases=12)
    for name in ("IMAGES", "LABELS", "STUDIES"):
        Path(name).mkdir()
    for number in range(12):
        image = Path(f"data/case{number}_0.nii.gz").read_bytes()
        Path(f"IMAGES/case{number:02d}.nii.gz").write_bytes(image)
        Path(f"STUDIES/case{number:02d}.nii.gz").write_bytes(image)
        Path(f"data/label{number}.nii.gz").rename(f"LABELS/case{number:02d}.nii.gz")
    return tmp_path


def _walk(lines: list[str]) -> None:
    for line in lines:
        _run(line)
        if line.startswith("medseg bundle new"):
            _shorten(Path("bundles/my_bundle"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")  # networks of two steps miss things
def test_the_walk_of_the_readme_runs_word_for_word(home: Path) -> None:
    block = (ROOT / "README.md").read_text().split("<!-- walk -->")[1]
    lines = list(_commands(block[: block.index("```\n", 8) + 4]))
    assert len(lines) == 13
    _walk(lines)
    assert Bundle.open("my_bundle").metadata["eval_metrics"]["cross_validation"]["cases"].startswith("10 cases")
    assert json.loads(Path("scores/metrics.json").read_text())["n_unpaired"] == 0
    learnt = json.loads(Path("labelled/run.json").read_text())["summary"]["trained_on"]
    assert 0 < learnt < 12
    readme = Path("bundles/my_bundle/docs/README.md").read_text()
    Path("INPUT").symlink_to(home / "STUDIES")
    for line in _commands(readme):
        _run(line + (" --resume" if line.startswith("medseg train") else ""))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")
def test_what_the_demo_says_last_runs_word_for_word(home: Path) -> None:
    _walk(list(NEXT))
    assert len(list(Path("results").glob("*_seg.nii.gz"))) == 12
