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

from medseg.bundle import Bundle
from medseg.cli import pacs
from medseg.cli.main import app
from tests.inference.bundles import ORIENTED, Design, write_bundle
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


@pytest.mark.parametrize("locate", [False, True])
def test_a_node_whose_bundle_the_policy_does_not_list_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locate: bool
) -> None:
    bundle, locator = (write_bundle(tmp_path / name, Design(transforms=ORIENTED)) for name in ("one", "locator"))
    monkeypatch.setenv("MEDSEG_POLICY", str(tmp_path / "policy.toml"))
    listed = f'[[bundles]]\nname = "one"\nsha256 = "{Bundle.open(bundle).sha256}"\n' if locate else ""
    (tmp_path / "policy.toml").write_text(listed)
    structure = next(iter(Bundle.open(locator).labels.values()))
    extra = f'locate = "{locator}:{structure}"\n' if locate else ""
    settings = tmp_path / "pacs.toml"
    settings.write_text(
        '[listener]\nfolder = "in"\nport = 0\nallowed_callers = ["MEDSEG"]\n'
        '[nodes.pacs]\nae_title = "A"\nhost = "127.0.0.1"\nport = 4242\n'
        f'[[routes]]\nname = "r"\nbundle = "{bundle}"\nwrite = ["seg"]\nsend_to = ["pacs"]\n{extra}'
    )
    monkeypatch.setattr(pacs, "confine_command", lambda *_, **__: None)  # this process goes on
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("medseg.pacs.listener.Listener", None)  # nothing is opened before it is known
    done = CliRunner().invoke(app, ["pacs", "listen", str(settings)])
    assert done.exit_code == 2, done.stderr
    assert "does not list it" in done.stderr
    assert ("locator 0" in done.stderr) == locate
    assert "listening" not in done.stdout


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
