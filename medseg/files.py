"""Files that appear whole or not at all, and their SHA-256 sums."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "remove_leftovers", "sha256_file", "write_bytes", "write_json", "write_text"]

_PREFIX = ".medseg-partial-"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; on success it becomes ``path`` in one step.

    The temporary name keeps the extension(s), since writers choose their format by it. If the body raises,
    nothing is left under either name. A killed process leaves the temporary file, which
    :func:`remove_leftovers` clears at the next start.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PREFIX}{secrets.token_hex(4)}-{target.name}")
    try:
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what killed processes left half-written in ``folder`` (call it under the folder's lock)."""
    for leftover in Path(folder).glob(f"{_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all; bytes of a name that are no text become ``?``."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits, in constant memory."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
