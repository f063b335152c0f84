"""The command tree. Command files import nothing heavy at module level, so ``medseg --help`` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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


def main() -> None:
    """Entry point of the ``medseg`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # names on disk need not be valid text
    from medseg.cli import commands  # noqa: F401  the command files import `app` from here

    app()
