from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

from medseg.cli import pacs
from medseg.cli.main import app
from tests.pacs.conftest import listening, write_study

assert pacs


def test_echo_and_send_reach_a_node(tmp_path: Path) -> None:
    write_study(tmp_path / "source", "a", 2)
    with listening(tmp_path / "in") as (_, node):
        assert CliRunner().invoke(app, ["pacs", "echo", str(node)]).exit_code == 0
        sent = CliRunner().invoke(app, ["pacs", "send", str(node), str(tmp_path / "source"), "--json"])
    assert json.loads(sent.stdout) == {"sent": 2, "failed": []}


def test_a_file_that_cannot_be_sent_makes_the_exit_code_1(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"x" * 500)
    with listening(tmp_path / "in") as (_, node):
        assert CliRunner().invoke(app, ["pacs", "send", str(node), str(junk)]).exit_code == 1


@pytest.mark.parametrize("arguments", [["echo", "nonsense"], ["find", "X@127.0.0.1:1", "--where", "Modality"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["pacs", *arguments]).exit_code == 2


def test_listen_stops_at_sigterm_and_is_resumable(tmp_path: Path) -> None:
    settings = tmp_path / "pacs.toml"
    settings.write_text('[listener]\nfolder = "in"\nport = 0\nallowed_callers = ["MEDSEG"]\n')
    code = "from medseg.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "pacs", "listen", str(settings)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "listening on port" in process.stdout.readline()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
