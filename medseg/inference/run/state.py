"""What is to be done in a run, what is finished, and what became of it, in one SQLite file that survives any kill.

Only the driving process writes. The rollback journal (not WAL, which needs shared memory) makes the file safe on
network file systems as far as their locks are.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.errors import Interrupted, OutputLocked, OutputUnusable, UsageError
from medseg.files import sha256_file, shown
from medseg.inference.cases import InputCase, content_key, stat_key, with_path_hash
from medseg.inference.run.export import refusal_of
from medseg.inference.run.options import RunContext
from medseg.results.case_result import CaseResult
from medseg.results.state_file import STATE_NAME, stored_cases
from medseg.trust.trust_files import TrustState

LOCK_NAME = ".medseg-lock.sqlite"

MAX_DEATHS = 5
"""How often the process may die with a case in hand before the case is given up."""

_GIVEN_UP = (
    "the process died {} times while this case was in hand (out of memory, or a crash in a decoder);"
    " it was given up so that the others finish; try it alone with --fresh, or crop with --roi"
)
_CHANGED = ".changed"
"""Added to the name of an output that somebody changed: it may hold corrections made by hand."""

_SCHEMA = """
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
_log = logging.getLogger(__name__)

Progress = Callable[[int, int, CaseResult], None]
"""Called with (cases finished, cases in all, result) after every case."""


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

    If another run holds it that is ``OutputLocked``, if there is no room or permission for it ``OutputUnusable``.
    """
    with _writing(folder):
        connection = sqlite3.connect(folder / LOCK_NAME, timeout=0, isolation_level=None)
    with closing(connection):
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


@dataclass(frozen=True)
class Entry:
    """One case as the file holds it.

    ``run_key`` is the digest of bundle and options, ``stat_key`` that of the input files' names, sizes and times,
    ``content_key`` that of their bytes. A process died ``deaths`` times while the case was in hand; until then there is
    no ``result``.
    """

    case_id: str
    source: str
    run_key: str
    stat_key: str
    content_key: str
    deaths: int = 0
    result: CaseResult | None = None


class RunState:
    """The cases of a run and their results by case id; use it under :func:`locked`, from one thread.

    It counts the cases that this run has ``computed``, and workers of a cluster that died; ``trust`` is what the opened
    bundle says of its verdicts, None before and where others have opened it.
    """

    def __init__(self, context: RunContext, cases: Sequence[InputCase], progress: Progress | None = None) -> None:
        self.context, self.progress = context, progress
        self.results: dict[str, CaseResult] = {}
        self.computed = self.workers_lost = 0
        self.trust: TrustState | None = None
        self._path = context.folder / STATE_NAME
        self._connection = self._open()
        if context.options.fresh:
            self._execute("DELETE FROM cases")
        self._entries = self._read()
        self._open_cases: set[str] = set()
        self.cases = [self._distinct(case) for case in cases]

    def _open(self) -> sqlite3.Connection:
        try:
            with _writing(self._path):
                connection = sqlite3.connect(self._path, isolation_level=None)
                connection.execute("PRAGMA journal_mode=DELETE")
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{self._path} cannot be used as a journal ({error}); delete it to compute every case anew"
            ) from error
        return connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _execute(self, statement: str, values: Sequence[object] = ()) -> None:
        with _writing(self._path):
            self._connection.execute(statement, values)

    def _read(self) -> dict[str, Entry]:
        entries = {}
        for row in stored_cases(self._path, self._connection):
            result = None if row["result"] is None else CaseResult.from_json(row["result"])
            entries[row["case_id"]] = Entry(**{**row, "source": os.fsdecode(row["source"]), "result": result})
        return entries

    def _write(self, entry: Entry) -> None:
        """Insert or replace one case, durably."""
        result = None if entry.result is None else json.dumps(entry.result.to_json())
        source, keys = os.fsencode(entry.source), (entry.run_key, entry.stat_key, entry.content_key, entry.deaths)
        values = (entry.case_id, source, *keys, result)
        self._execute("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    # --- what is left to do -----------------------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """Number of cases without a result."""
        return len(self.cases) - len(self.results)

    def pending(self) -> list[InputCase]:
        """Note what is refused or finished already; return what is left, cases that may kill the process last."""
        return sorted(filter(self._is_left, self.cases), key=lambda case: self.may_kill(case.case_id))

    def may_kill(self, case_id: str) -> bool:
        """Whether a process died with this case in hand: it is worked on alone, so that no other is blamed."""
        return self._entries[case_id].deaths > 0

    def _is_left(self, case: InputCase) -> bool:
        try:
            refusal = refusal_of(case, self.context.options.write)
            if refusal is not None:
                raise refusal
            entry = self._entries[case.case_id] = self._known(case)
        except (Interrupted, OutputUnusable):
            raise
        except Exception as error:  # noqa: BLE001  recorded as this case's result
            self._note(CaseResult.of_error(case.case_id, case.source, error, "reading"))
            return False
        if entry.result is not None:
            self._note(replace(entry.result, source=case.source))
        elif entry.deaths >= MAX_DEATHS:
            message = _GIVEN_UP.format(entry.deaths)
            self._note(CaseResult(case.case_id, case.source, "failed", "crashed", message))
        return case.case_id not in self.results

    def _known(self, case: InputCase) -> Entry:
        """What the file holds of a case, with its result only if that still holds."""
        new = Entry(case.case_id, case.source, self.context.run_key, stat_key(case), "")
        old = self._entries.get(case.case_id)
        if old is None or old.run_key != new.run_key:
            return new
        if old.stat_key != new.stat_key and (old.content_key == "" or old.content_key != content_key(case)):
            return new
        result = old.result if old.result is not None and old.result.status != "failed" else None
        held = [self._holds(name, result) for name in result.outputs] if result else []  # each is looked at
        return replace(old, stat_key=new.stat_key, source=case.source, result=result if all(held) else None)

    def _holds(self, name: str, result: CaseResult) -> bool:
        """Whether an output is still the file that was written."""
        path, known = self.context.folder / name, result.checksums.get(name)
        if not path.is_file():
            return False
        if known is not None and path.stat().st_size == known.bytes and sha256_file(path) == known.sha256:
            return True
        kept = path.replace(path.with_name(f"{name}{_CHANGED}"))
        _log.warning("%s is not what was written; it is computed again, what was there is now %s", name, kept.name)
        return False

    def _distinct(self, case: InputCase) -> InputCase:
        """The case, under another name if an earlier run has used its name for other bytes from another place."""
        old = self._entries.get(case.case_id)
        if old is None or old.content_key == "" or Path(old.source).absolute() == Path(case.source).absolute():
            return case
        if case.refusal is not None or old.content_key == content_key(case):
            return case
        return with_path_hash(case)

    # --- what became of the cases -----------------------------------------------------------------------------------

    def begin(self, case_id: str) -> None:
        """Note that a case is in hand here, as a death until it is settled.

        A case that kills the process is thereby given up after a few tries.
        """
        entry = self._entries[case_id]
        self._open_cases.add(case_id)
        self._write(replace(entry, deaths=entry.deaths + 1))

    def died(self, case_id: str) -> None:
        """Note that workers died with a case in hand."""
        entry = self._entries[case_id] = replace(self._entries[case_id], deaths=self._entries[case_id].deaths + 1)
        self._write(entry)

    def settle(self, result: CaseResult, content_key: str = "") -> None:
        """Note the result of a case, and the digest of its bytes if they were read."""
        entry = self._entries[result.case_id]
        self._write(replace(entry, content_key=content_key or entry.content_key, result=result))
        self._open_cases.discard(result.case_id)
        self.computed += 1
        self._note(result)

    def forget_open(self) -> None:
        """After an interruption: what is in hand was not finished, and nothing died."""
        for case_id in self._open_cases:
            self._write(self._entries[case_id])
        self._open_cases.clear()

    def _note(self, result: CaseResult) -> None:
        self.results[result.case_id] = result
        if self.progress is not None:
            self.progress(len(self.results), len(self.cases), result)
