"""Names of files and what a bundle says of itself reach the terminal, logs and tables as texts, and as nothing else."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from medseg.cli._console import PlainConsole
from medseg.cli._text import print_plainly, printable, printable_lines
from medseg.cli.main import app, load_commands
from medseg.ingest import save_nifti
from tests.bundle.sample import write_bundle

HOSTILE = (
    "\x1b]0;title\x07\x1b[31mred\rx\u202eabc\x9b2J [bold]b[/bold] [/x] [link=http://x.example]l[/link]\nforged: done"
)
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
FORMULAS = ("=1+1", "@SUM(1)", " =1+1", "＝1+1", "\t=1")


@given(st.text())
def test_what_is_printed_is_one_line_of_marks_that_show(text: str) -> None:
    line = printable(text)
    assert not RAW.search(line)
    assert len(line) <= 2001
    assert "\n" not in line
    assert all(part.startswith("  ") for part in printable_lines(text).split("\n")[1:])


@given(st.text(st.sampled_from("[]/\\=bold ak:smile\x1b\n")))
def test_markup_of_others_means_nothing(text: str) -> None:
    console = PlainConsole(
        record=True, highlight=False, width=10_000, force_terminal=True, color_system="truecolor", quiet=False
    )
    console.file = open("/dev/null", "w")  # noqa: SIM115, PTH123  what is recorded counts
    with console.file:
        console.print(text)
        printed = console.export_text(styles=True)
    assert printed.rstrip() == printable(text).rstrip()


@pytest.fixture
def plain() -> Iterator[None]:
    """What a command changes in this process, and its undoing."""
    formatter, hook, handlers = warnings.formatwarning, sys.excepthook, [*logging.getLogger().handlers]
    yield
    warnings.formatwarning, sys.excepthook = formatter, hook
    logging.getLogger().handlers[:] = handlers


@pytest.mark.usefixtures("plain")
def test_logs_warnings_and_tracebacks_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers[:] = []
    print_plainly()
    logging.getLogger("medseg").warning("found %s", HOSTILE)
    sys.stderr.write(warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "file", 3))
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    told = capsys.readouterr().err
    assert "found" in told
    assert "UserWarning" in told
    assert "ValueError" in told
    assert not RAW.search(told)
    assert "\nforged: done" not in told.rpartition("Traceback")[0]


def run(*arguments: object) -> tuple[int, str]:
    """A command, and all that it prints; nothing may be raw, forged or a traceback."""
    load_commands()
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert answer.exception is None or isinstance(answer.exception, SystemExit), repr(answer.exception)
    assert not RAW.search(answer.output), ascii(RAW.search(answer.output))
    assert "\nforged: done" not in answer.output
    return answer.exit_code, answer.output


def save(folder: Path, name: str, values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_nifti(values, np.diag([1.0, 1.0, 2.0, 1.0]), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Images and label maps under hostile names, in two folders."""
    rng = np.random.default_rng(0)
    for number, name in enumerate((HOSTILE.replace("/", "_"), *FORMULAS)):
        save(tmp_path / "images", name, rng.normal(100, 10, (24, 24, 24)).astype(np.int16))
        label = np.zeros((24, 24, 24), np.uint8)
        label[4:9, 4:9, 4 : 9 + number] = 1
        save(tmp_path / "labels", name, label)
    return tmp_path


def assert_no_formula(folder: Path) -> None:
    for path in [*folder.rglob("*.csv"), *folder.rglob("*.tsv")]:
        for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline="")):
            for cell in row:
                assert not re.match(r"[\t\r]|\s*[=+@＝＋＠]", cell), (path.name, cell)
        assert not RAW.search(path.read_text())


@pytest.mark.usefixtures("plain")
def test_names_of_files(volumes: Path) -> None:
    images, labels, out = volumes / "images", volumes / "labels", volumes / "out"
    assert run("index", images)[0] == 0
    assert run("index", images, "--json")[0] == 0
    assert run("manifest", "create", "--images", images, "--labels", labels, "-o", out / "list.json")[0] == 0
    run("manifest", "audit", out / "list.json")
    assert run("evaluate", labels, labels, "-o", out / "scores")[0] == 0
    assert run("report", out / "scores")[0] == 0
    page = (out / "scores" / "report.html").read_text()
    assert not RAW.search(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert_no_formula(out)
    for missing in (volumes / HOSTILE, "\x1b[31m"):
        assert run("evaluate", missing, labels, "-o", out / "more")[0] == 2
        assert run("index", missing)[0] == 2
        assert run("report", missing)[0] == 2


@pytest.mark.usefixtures("plain")
def test_what_a_bundle_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundles")
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    hostile = dict.fromkeys(("version", "task", "description", "authors", "copyright", "intended_use", "name"), HOSTILE)
    metadata |= {**hostile, "changelog": {HOSTILE: HOSTILE}, "references": [HOSTILE], "data_source": HOSTILE}
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] = HOSTILE
    metadata["eval_metrics"] = {HOSTILE: 0.5}
    metadata[HOSTILE] = HOSTILE
    path.write_text(json.dumps(metadata))
    inference = json.loads((bundle / "configs" / "inference.json").read_text())
    inference["odd"] = f"${HOSTILE!r}.join([])"
    inference[HOSTILE] = {"_target_": HOSTILE}
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    monkeypatch.chdir(tmp_path)
    for command in ("info", "audit", "verify"):
        run("bundle", command, bundle)
        run("bundle", command, bundle, "--json")
    assert run("bundle", "list")[0] == 0
    hostile_place = tmp_path / "bundles" / HOSTILE.replace("/", "_")
    shutil.copytree(bundle, hostile_place)
    assert run("bundle", "info", hostile_place)[0] == 0
    assert run("bundle", "list")[0] == 0
    assert run("bundle", "info", tmp_path / HOSTILE)[0] == 2


@pytest.mark.usefixtures("plain")
def test_settings_and_runs_of_others(tmp_path: Path) -> None:
    run_json = {
        "cases": [{"case_id": "a", "status": HOSTILE, "reason": HOSTILE, "message": HOSTILE, "source": HOSTILE}]
    }
    (tmp_path / "run.json").write_text(json.dumps(run_json))
    run("report", tmp_path)
    run("trust", "worklist", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({HOSTILE: 1, "cases": [HOSTILE], "versions": {HOSTILE: 3}}))
    assert run("report", tmp_path)[0] == 2
    settings = tmp_path / "pacs.toml"
    settings.write_text(f"[nodes.{json.dumps(HOSTILE)}]\n{json.dumps(HOSTILE)} = 1\n")
    assert run("pacs", "echo", "x", "--settings", settings)[0] == 2
