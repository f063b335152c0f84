"""The index on disk: which files were seen, what their headers say, and the verdicts, in one SQLite database.

It holds hashes instead of identities and shifted days instead of dates. Paths are kept as they are, since an index
that cannot find a file is none.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from medseg.errors import UsageError
from medseg.ingest.walk import Entry

_TOKEN_BYTES = 5
_COMMIT_EVERY = 5000

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE folders (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, size INTEGER, mtime_ns INTEGER);
CREATE TABLE series (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, folder INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, token INTEGER NOT NULL, series INTEGER NOT NULL, UNIQUE (folder, name));
CREATE INDEX files_by_series ON files (series, folder, token);
CREATE TABLE headers (file INTEGER PRIMARY KEY, payload TEXT NOT NULL);
CREATE TABLE records (series INTEGER NOT NULL, fingerprint TEXT NOT NULL, payload TEXT NOT NULL);
CREATE INDEX records_by_series ON records (series, fingerprint);
"""

_TABLES = frozenset({"meta", "folders", "series", "files", "headers", "records"})

_SCOPE = """
CREATE TEMP TABLE scope_folders (folder INTEGER PRIMARY KEY);
CREATE TEMP TABLE scope_files (file INTEGER PRIMARY KEY);
"""

# Each of the two names the condition itself: through a view SQLite would read all files for every series.
_GROUPS = """
SELECT series.id, series.key, COUNT(*), SUM(files.token) FROM files JOIN series ON series.id = files.series
WHERE files.folder IN (SELECT folder FROM scope_folders) OR files.id IN (SELECT file FROM scope_files)
GROUP BY files.series
"""

_HEADERS = """
SELECT payload FROM files JOIN headers ON headers.file = files.id
WHERE files.series = ? AND (
    files.folder IN (SELECT folder FROM scope_folders) OR files.id IN (SELECT file FROM scope_files))
ORDER BY files.id
"""

# Files that hold no image belong to no series, which is series 0.
_ADD_FILES = """
INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, COALESCE((SELECT id FROM series WHERE key = ?), 0))
"""

Found = tuple[str, str]
"""What was found in one file: the key of its series (empty: nothing of interest) and its header as text."""


class DamagedIndex(ValueError):
    """The index holds what medseg has not written."""


class FoundFile(NamedTuple):
    """A file that is new or has changed: the number of its folder, its path, and its size and time."""

    folder: int
    path: str
    entry: Entry


class SeriesGroup(NamedTuple):
    """The files of one series that lie within the scanned paths, told by a fingerprint."""

    series: int
    key: str
    fingerprint: str


class IndexDatabase:
    """One open index in the database file ``path``; use it as a context manager.

    ``None`` is a private one that lives in temporary storage until it is closed. A file that is not such a database,
    or that another process holds, is a UsageError.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            # An empty name is a private database that spills to a temporary file: memory stays flat.
            self._connection = sqlite3.connect("" if path is None else path, timeout=30.0, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise UsageError(f"cannot use {path} as an index: {error}; give another --database or delete it") from error
        self._written = 0

    def __enter__(self) -> IndexDatabase:
        self._connection.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        # What was read so far is kept whatever happened: the next scan goes on from there.
        try:
            self._connection.execute("COMMIT")
        finally:
            self._connection.close()

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA synchronous = NORMAL")
        tables = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and ("meta" not in tables or not tables <= _TABLES):
            raise sqlite3.DatabaseError("it is a database of something else")
        version = run("SELECT value FROM meta WHERE key = 'version'").fetchone() if tables else None
        if version != (_rules_version(),):
            for table in tables:
                run(f"DROP TABLE {table}")  # names come from the schema above
            self._connection.executescript(_SCHEMA)
            run("INSERT INTO meta VALUES ('version', ?)", (_rules_version(),))
        self._connection.executescript(_SCOPE)

    def folder(self, path: str) -> tuple[int, tuple[int, int] | None]:
        """Number of a folder, and for an archive the size and time it had when its members were listed."""
        query = "SELECT id, size, mtime_ns FROM folders WHERE path = ?"
        found = self._connection.execute(query, (os.fsencode(path),)).fetchone()
        if found is not None:
            return found[0], None if found[1] is None else (found[1], found[2])
        cursor = self._connection.execute("INSERT INTO folders (path) VALUES (?)", (os.fsencode(path),))
        return int(cursor.lastrowid or 0), None

    def remember_archive(self, folder: int, size: int, mtime_ns: int) -> None:
        """Note the size and time of an archive whose members are listed."""
        self._connection.execute("UPDATE folders SET size = ?, mtime_ns = ? WHERE id = ?", (size, mtime_ns, folder))

    def known(self, folder: int) -> dict[str, tuple[int, int, int]]:
        """Number, size and time of the known files of a folder, by name."""
        rows = self._connection.execute("SELECT name, id, size, mtime_ns FROM files WHERE folder = ?", (folder,))
        try:
            return {os.fsdecode(name): (number, size, mtime_ns) for name, number, size, mtime_ns in rows}
        except TypeError as error:
            raise DamagedIndex(f"of a file, {error}") from error

    def forget_files(self, numbers: Iterable[int]) -> None:
        """Drop files that are gone or have changed."""
        gone = [(number,) for number in numbers]
        self._connection.executemany("DELETE FROM headers WHERE file = ?", gone)
        self._connection.executemany("DELETE FROM files WHERE id = ?", gone)

    def include(self, folder: int) -> None:
        """Take a whole folder into the scope of this scan."""
        self._connection.execute("INSERT OR IGNORE INTO scope_folders VALUES (?)", (folder,))

    def include_named(self, folder: int, names: Sequence[str]) -> None:
        """Take single files of a folder into the scope of this scan."""
        self._connection.executemany(
            "INSERT OR IGNORE INTO scope_files SELECT id FROM files WHERE folder = ? AND name = ?",
            [(folder, os.fsencode(name)) for name in names],
        )

    def add(self, files: Sequence[FoundFile], found: Sequence[Found]) -> None:
        """Store what was found in some files."""
        (last,) = self._connection.execute("SELECT COALESCE(MAX(id), 0) FROM files").fetchone()
        rows, headers = [], []
        for number, ((folder, _, entry), (key, payload)) in enumerate(zip(files, found, strict=True), last + 1):
            name, size, mtime_ns = entry
            rows.append((number, folder, os.fsencode(name), size, mtime_ns, _token(folder, entry), key))
            if key:
                headers.append((number, payload))
        keys = dict.fromkeys((key,) for key, _ in found if key)
        self._connection.executemany("INSERT OR IGNORE INTO series (key) VALUES (?)", keys)
        self._connection.executemany(_ADD_FILES, rows)
        self._connection.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?)", headers)
        self._written += len(rows)
        if self._written >= _COMMIT_EVERY:
            self._written = 0
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")

    def forget_folders_below(self, root: str) -> None:
        """Drop folders below ``root`` that this scan did not meet, with their files."""
        start = os.fsencode(root).rstrip(b"/")
        gone = self._connection.execute(
            "SELECT id FROM folders WHERE (path = ? OR path > ? AND path < ?) "
            "AND id NOT IN (SELECT folder FROM scope_folders)",
            (start, start + b"/", start + b"0"),
        ).fetchall()
        for (folder,) in gone:
            self.forget_files([number for number, _, _ in self.known(folder).values()])
            self._connection.execute("DELETE FROM folders WHERE id = ?", (folder,))

    def groups(self) -> list[SeriesGroup]:
        """Every series that has files in scope."""
        rows = self._connection.execute(_GROUPS)
        try:
            return [SeriesGroup(number, key, f"{count}-{total:x}") for number, key, count, total in rows]
        except (TypeError, ValueError) as error:
            raise DamagedIndex(f"of a series, {error}") from error

    def headers(self, series: int) -> Iterator[str]:
        """The stored headers of a series' files in scope."""
        rows = self._connection.execute(_HEADERS, (series,))
        return (payload for (payload,) in rows)

    def records(self) -> Mapping[tuple[int, str], list[str]]:
        """All stored verdicts, by series and fingerprint."""
        found: dict[tuple[int, str], list[str]] = {}
        rows = self._connection.execute("SELECT series, fingerprint, payload FROM records ORDER BY rowid")
        for series, fingerprint, payload in rows:
            found.setdefault((series, fingerprint), []).append(payload)
        return found

    def store_records(self, group: SeriesGroup, payloads: Sequence[str]) -> None:
        """Store the verdicts on a series, in the place of older ones."""
        self._connection.execute("DELETE FROM records WHERE series = ?", (group.series,))
        rows = [(group.series, group.fingerprint, payload) for payload in payloads]
        self._connection.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)


@cache
def _rules_version() -> str:
    """A digest of the code that reads headers and judges them: with other rules a database is filled anew.

    Nobody has to remember to raise a number, so that no verdict of older rules is ever believed.
    """
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for module in (*sorted(here.glob("*.py")), here.parent / "geometry.py"):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def _token(folder: int, entry: Entry) -> int:
    """A number that changes with the file; the sum over a series tells whether any of its files has changed."""
    text = f"{folder}/{entry.name}/{entry.size}/{entry.mtime_ns}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=_TOKEN_BYTES).digest(), "big")
