"""The ``medseg`` command. Only the file of the command that is asked for is imported, all of them for help."""

from __future__ import annotations

import sys
from importlib import import_module

from medseg._safe_path import forget_current_folder
from medseg.cli._app import app

__all__ = ["COMMANDS", "app", "load_commands", "main"]

COMMANDS = (
    "demo", "doctor", "index", "manifest", "bundle", "train",
    "crossval", "infer", "evaluate", "concord", "report", "trust", "pacs",
)  # fmt: skip
"""Every command is a file of this folder, in the order of the walk (in ``--help`` groups of commands come last)."""


def load_commands(*names: str) -> None:
    """Register commands with :data:`app`; all of them if none is named."""
    for name in names or COMMANDS:
        import_module(f"medseg.cli.{name}")


def main() -> None:
    """Entry point of the ``medseg`` command."""
    forget_current_folder()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # names on disk need not be valid text
    load_commands(*(word for word in sys.argv[1:2] if word in COMMANDS))
    app()
