"""Bundles that ship code: refused, run without network on request, or used for their network alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import infer, train
from medseg.cli.main import app
from medseg.confinement import can_filter_sockets
from medseg.errors import ExitCode
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, save

assert infer, train  # they register their commands

SCRIPT = """
import socket
class Prepare:
    def __init__(self, port, mark):
        self.port, self.mark = port, mark
    def __call__(self, data):
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            answer = "reached"
        except OSError:
            answer = "cut off"
        with open(self.mark, "w") as handle:
            handle.write(answer)
        return data
"""


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(blobs((16, 12, 10)), grid("oblique"), tmp_path / "head.nii.gz")


@pytest.fixture
def with_code(tmp_path: Path, port: int) -> Path:
    """A bundle whose preprocessing is a class of its own, which tries to reach the network and notes the outcome."""
    step = {"_target_": "scripts.prepare.Prepare", "port": port, "mark": str(tmp_path / "out" / "mark")}
    folder = write_bundle(tmp_path / "with_code", Design(transforms=(*ORIENTED, step)))
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "prepare.py").write_text(SCRIPT)
    return folder


def _medseg(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medseg", *map(str, arguments)]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=variables)


Answer = tuple[int, str]


def _here(*arguments: str | Path) -> Answer:
    """The command in this process, which takes a tenth of the time: where nothing of a stranger may run anyway."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.output


def _apart(*arguments: str | Path) -> Answer:
    """The command as a user starts it, behind its wall."""
    done = _medseg(*arguments)
    return done.returncode, done.stderr


@pytest.fixture(params=[_here, pytest.param(_apart, marks=pytest.mark.slow)])
def answer(request: pytest.FixtureRequest) -> Callable[..., Answer]:
    """Exit code and message of a command."""
    found: Callable[..., Answer] = request.param
    return found


def test_code_is_refused_by_default(
    with_code: Path, image: Path, tmp_path: Path, answer: Callable[..., Answer]
) -> None:
    code, told = answer("infer", with_code, image, "-o", tmp_path / "out")
    assert code == ExitCode.USAGE
    assert "does not pass the audit" in told
    assert not (tmp_path / "out" / "mark").exists()


@pytest.mark.slow
@pytest.mark.skipif(not can_filter_sockets(), reason="this system does not let a process deny itself sockets")
def test_trusted_code_runs_without_network(with_code: Path, image: Path, tmp_path: Path) -> None:
    done = _medseg("infer", with_code, image, "-o", tmp_path / "out", "--trust-bundle")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert (tmp_path / "out" / "mark").read_text() == "cut off"
    assert load(tmp_path / "out" / "head_seg.nii.gz")[0].any()


def test_the_network_alone_needs_clean_preprocessing(
    with_code: Path, image: Path, tmp_path: Path, answer: Callable[..., Answer]
) -> None:
    code, told = answer("infer", with_code, image, "-o", tmp_path / "out", "--network-only")
    assert code == ExitCode.USAGE
    assert "scripts.prepare.Prepare" in told
    assert not (tmp_path / "out" / "mark").exists()


def test_the_network_alone_is_used_as_in_the_clean_bundle(
    image: Path, tmp_path: Path, answer: Callable[..., Answer]
) -> None:
    clean = write_bundle(tmp_path / "clean", Design(transforms=ORIENTED))
    stranger = write_bundle(tmp_path / "stranger", Design(transforms=ORIENTED))
    (stranger / "scripts").mkdir()
    (stranger / "scripts" / "anything.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    file = stranger / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["imports"].append("$import scripts.anything")
    config["handlers"] = [{"_target_": "scripts.anything.Handler"}]
    file.write_text(json.dumps(config))
    assert answer("infer", stranger, image, "-o", tmp_path / "refused")[0] == ExitCode.USAGE
    assert answer("infer", stranger, image, "-o", tmp_path / "a", "--network-only")[0] == ExitCode.DONE
    assert answer("infer", clean, image, "-o", tmp_path / "b")[0] == ExitCode.DONE
    found, expected = (load(tmp_path / name / "head_seg.nii.gz")[0] for name in "ab")
    assert expected.any()
    np.testing.assert_array_equal(found, expected)
    assert not (tmp_path / "mark").exists()


def test_training_refuses_code_too(with_code: Path, tmp_path: Path, answer: Callable[..., Answer]) -> None:
    trainer = {"_target_": "medseg.training.AdversarialSegmentationTrainer"}
    config = {"train": {"trainer": trainer, "step": {"_target_": "scripts.prepare.Prepare"}}}
    (with_code / "configs" / "train.json").write_text(json.dumps(config))
    code, told = answer("train", with_code, "--output", tmp_path / "run")
    assert code == ExitCode.USAGE
    assert "does not pass the audit" in told


def test_own_code_is_refused_where_no_socket_can_be_denied(with_code: Path, image: Path, tmp_path: Path) -> None:
    done = _medseg("infer", with_code, image, "-o", tmp_path / "out", "--trust-bundle", MEDSEG_UNCONFINED="1")
    assert done.returncode == ExitCode.USAGE
    assert "runs only without network" in done.stderr
    assert not (tmp_path / "out" / "mark").exists()
