"""The command tree, and what every command shares: ``--json``, ``--quiet``, ``-v``, ``--debug``, and exit codes."""

from __future__ import annotations

import functools
import inspect
import json as json_module
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli._text import print_plainly, printable, printable_lines
from medseg.errors import ExitCode, MedsegError

if TYPE_CHECKING:
    from medseg.cli._console import PlainConsole


app = typer.Typer(
    name="medseg",
    help="3D medical image segmentation on MONAI: from a folder of studies to label maps and figures.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: the decorated one costs three times the start-up
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from medseg._version import medseg_version

        typer.echo(f"medseg {medseg_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _bundle(text: str) -> Path:
    from medseg.bundle.find import find_bundle

    return find_bundle(text)


BundleArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", parser=_bundle, help="A bundle's folder, or a name from `medseg bundle list`."),
]
"""The bundle that a command is about."""

_COMMON = {
    "json": Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout; people's text goes to stderr.")
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")],
    "verbose": Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more; twice for everything.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}

_DEFAULTS = {"json": False, "quiet": False, "verbose": 0, "debug": False}


@dataclass(frozen=True)
class Outcome:
    """What a command hands back: the object that ``--json`` prints, and whether every case was done."""

    result: Mapping[str, Any]
    complete: bool = True


@dataclass
class _Streams:
    to_stderr: bool = False
    quiet: bool = False


_streams = _Streams()


def terminal() -> PlainConsole:
    """Console for people: stdout, or stderr under ``--json``; silent under ``--quiet``."""
    from medseg.cli._console import PlainConsole

    wraps = sys.stdout.isatty()
    return PlainConsole(stderr=_streams.to_stderr, quiet=_streams.quiet, highlight=False, soft_wrap=not wraps)


def is_quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return _streams.quiet


def command(function: Callable[..., Outcome | None]) -> Callable[..., None]:
    """Turn a function that returns an :class:`Outcome` into a command with the shared options and exit codes."""

    @functools.wraps(function)
    def run(*args: Any, json: bool, quiet: bool, verbose: int, debug: bool, **options: Any) -> None:
        _streams.to_stderr, _streams.quiet = json, quiet
        print_plainly()
        logging.getLogger("medseg").setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
        try:
            outcome = function(*args, **options)
        except (MedsegError, OSError, sqlite3.Error, RecursionError) as error:
            told = _told(error)
            if debug or told is None:
                raise
            if json:
                sys.stdout.write(json_module.dumps({"error": type(error).__name__, "message": told}) + "\n")
            sys.stderr.write(f"medseg: {told}\n")
            code = error.exit_code if isinstance(error, MedsegError) else ExitCode.USAGE
            raise typer.Exit(code) from error
        except KeyboardInterrupt as error:
            sys.stderr.write("medseg: interrupted\n")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        if outcome is None:
            return
        if json:
            sys.stdout.write(json_module.dumps(outcome.result, indent=2, default=str) + "\n")
        raise typer.Exit(ExitCode.DONE if outcome.complete else ExitCode.INCOMPLETE)

    _extend_signature(run, function)
    return run


def _told(error: MedsegError | OSError | sqlite3.Error | RecursionError) -> str | None:
    """What people are told; None if the error is not for them: nobody reads stdout any more, or it is a bug."""
    if isinstance(error, MedsegError):
        return printable_lines(error)
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read; --debug shows where"
    if isinstance(error, sqlite3.Error):
        why = printable(error)
        return f"a database cannot be used ({why}); make room, check its permissions, or give another place"
    if isinstance(error, BrokenPipeError) or error.errno is None:
        return None
    where = f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{error.strerror}; make room, check its permissions, or give another place"


def _extend_signature(run: Callable[..., None], function: Callable[..., Outcome | None]) -> None:
    """Give ``run`` the parameters of ``function`` and the shared options, since typer reads the signature."""
    own = inspect.signature(function, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=hint)
        for name, hint in _COMMON.items()
    ]
    parameters = sorted([*own.parameters.values(), *shared], key=lambda parameter: parameter.kind)
    run.__signature__ = own.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
