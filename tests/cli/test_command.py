from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from medseg.cli._app import Outcome, command, terminal
from medseg.errors import Interrupted, Refusal, UsageError


def _app(behaviour: BaseException | Outcome) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @command
    def run(name: str, *, times: int = 1) -> Outcome:
        """Do it."""
        terminal().print(f"for people: {name} {times}")
        if isinstance(behaviour, BaseException):
            raise behaviour
        return behaviour

    return app


def test_json_is_alone_on_stdout() -> None:
    result = CliRunner().invoke(_app(Outcome({"done": 3})), ["x", "--times", "2", "--json"])
    assert json.loads(result.stdout) == {"done": 3}
    assert "for people: x 2" in result.stderr
    assert result.exit_code == 0


def test_people_read_stdout() -> None:
    result = CliRunner().invoke(_app(Outcome({"done": 3})), ["x"])
    assert result.stdout == "for people: x 1\n"


def test_quiet_prints_nothing_when_all_is_well() -> None:
    result = CliRunner().invoke(_app(Outcome({})), ["x", "--quiet"])
    assert result.output == ""


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (Outcome({}, complete=False), 1),
        (UsageError("found a, expected b"), 2),
        (Refusal("not-3d", "found 4D"), 2),
        (Interrupted("stopped"), 75),
        (KeyboardInterrupt(), 75),
    ],
)
def test_exit_codes(behaviour: BaseException | Outcome, code: int) -> None:
    result = CliRunner().invoke(_app(behaviour), ["x"])
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_an_error_is_one_message_on_stderr_and_an_object_under_json() -> None:
    result = CliRunner().invoke(_app(UsageError("found a, expected b")), ["x", "--json"])
    assert "medseg: found a, expected b" in result.stderr
    assert json.loads(result.stdout) == {"error": "UsageError", "message": "found a, expected b"}


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(_app(UsageError("found a")), ["x", "--debug"])
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_neither_torch_nor_monai(option: str) -> None:
    code = (
        "import sys; from medseg.cli.main import main\n"
        f"sys.argv = ['medseg', {option!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'numpy', 'pydicom', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "medseg" in done.stdout
