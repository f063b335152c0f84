"""What a batch run has finished, in one SQLite file that survives being killed at any moment.

Only the driving process writes. The rollback journal (not WAL, which needs shared memory) makes the file safe on
network file systems as far as their locks are.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import OutputLocked, OutputUnusable, UsageError
from medseg.files import shown
from medseg.results import JOURNAL_NAME

__all__ = ["Entry", "Journal", "locked"]

LOCK_NAME = ".medseg-lock.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cases (
    case_id TEXT PRIMARY KEY,
    source BLOB NOT NULL,
    run_key TEXT NOT NULL,
    stat_key TEXT NOT NULL,
    content_key TEXT NOT NULL,
    deaths INTEGER NOT NULL DEFAULT 0,
    result TEXT
);
"""


@dataclass(frozen=True)
class Entry:
    """One case in the journal.

    Parameters
    ----------
    case_id, source
        As in ``run.json``.
    run_key
        Digest of bundle and options.
    stat_key, content_key
        Digests of the input files' names, sizes and times, and of their bytes.
    deaths
        How often the process died while this case was in hand.
    result
        The case as in ``run.json``; None while it is in hand.
    """

    case_id: str
    source: str
    run_key: str
    stat_key: str
    content_key: str
    deaths: int = 0
    result: Mapping[str, Any] | None = None


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Tell what SQLite cannot write as what it is: the results have no place, which ends the run."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputUnusable(
            f"{shown(place)} cannot be written ({error}); what is finished is kept: make room, or give another folder,"
            " and run the same command again"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system releases it even if the process is killed.

    Raises
    ------
    OutputLocked
        If another run holds it.
    OutputUnusable
        If there is no room or no permission for it.
    """
    with _writing(folder):
        connection = sqlite3.connect(folder / LOCK_NAME, timeout=0, isolation_level=None)
    try:
        try:
            with _writing(folder):
                connection.execute("BEGIN EXCLUSIVE")
        except OutputUnusable as error:
            if getattr(error.__cause__, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                raise
            raise OutputLocked(
                f"another run is writing to {folder}; wait until it ends, or choose another folder with -o"
            ) from error
        yield
    finally:
        connection.close()


class Journal:
    """The journal of one output folder; use it under :func:`locked`, from one thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_NAME
        try:
            with _writing(self._path):
                self._connection = sqlite3.connect(self._path, isolation_level=None)
                self._connection.execute("PRAGMA journal_mode=DELETE")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{self._path} cannot be used as a journal ({error}); delete it to compute every case anew"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def clear(self) -> None:
        """Forget everything."""
        with _writing(self._path):
            self._connection.executescript("BEGIN; DELETE FROM facts; DELETE FROM cases; COMMIT;")

    def fact(self, name: str) -> Any:
        """A stored fact of the run, or None."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        """Store a fact of the run, such as the engine that was chosen."""
        with _writing(self._path):
            self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def entries(self) -> dict[str, Entry]:
        """All cases by case id."""
        rows = self._connection.execute(
            "SELECT case_id, source, run_key, stat_key, content_key, deaths, result FROM cases"
        )
        return {row[0]: _entry(row) for row in rows}

    def write(self, entry: Entry) -> None:
        """Insert or replace one case, durably."""
        result = None if entry.result is None else json.dumps(entry.result)
        values = (
            entry.case_id,
            os.fsencode(entry.source),
            entry.run_key,
            entry.stat_key,
            entry.content_key,
            entry.deaths,
            result,
        )
        with _writing(self._path):
            self._connection.execute("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def _entry(row: tuple[Any, ...]) -> Entry:
    case_id, source, run_key, stat, content, deaths, result = row
    return Entry(
        case_id, os.fsdecode(source), run_key, stat, content, deaths, None if result is None else json.loads(result)
    )
