"""What is to be done in a run, what is finished, and what became of it, in one SQLite file that survives any kill.

What a batch run has finished, in one SQLite file that survives being killed at any moment.

Only the driving process writes. The rollback journal (not WAL, which needs shared memory) makes the file safe on
network file systems as far as their locks are.

What is to be done, and what became of it: the cases of a run beside its journal.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import Interrupted, OutputLocked, OutputUnusable, UsageError
from medseg.files import sha256_file, shown
from medseg.inference.cases import InputCase, content_key, stat_key, with_path_hash
from medseg.inference.run.export import refusal_of
from medseg.inference.run.results import CaseResult, result_of_error
from medseg.inference.run.work import Setting, Work
from medseg.results import JOURNAL_NAME

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


MAX_DEATHS = 5
"""How often the process may die with a case in hand before the case is given up."""

_CHANGED = ".changed"
"""Added to the name of an output that somebody changed: it may hold corrections made by hand."""
_log = logging.getLogger(__name__)

Progress = Callable[[int, int, CaseResult], None]


@dataclass
class Hand(Work):
    """A case that is being worked on, with its entry in the journal."""

    entry: Entry = field(kw_only=True)

    @property
    def suspect(self) -> bool:
        """Whether a process died with this case in hand: it is then worked on alone, so that no other is blamed."""
        return self.entry.deaths > 0


class Ledger:
    """The cases of a run and their results; only the driving process has one.

    Parameters
    ----------
    setting
        What every case shares.
    journal
        The open journal.
    cases
        Every case of the run.
    progress
        Called after every case.
    """

    def __init__(
        self, setting: Setting, journal: Journal, cases: Sequence[InputCase], progress: Progress | None = None
    ) -> None:
        self.setting, self._journal = setting, journal
        self.results: dict[str, CaseResult] = {}
        self._entries = journal.entries()
        self.cases = [_distinct(case, self._entries.get(case.case_id)) for case in cases]
        self.progress = progress
        self.computed = 0
        self.workers_lost = 0
        self._open: dict[str, Hand] = {}

    @property
    def left(self) -> int:
        """Number of cases without a result."""
        return len(self.cases) - len(self.results)

    def pending(self) -> list[Hand]:
        """Settle what is refused or finished already; return what is left, suspects last."""
        hands = [hand for hand in map(self._pending, self.cases) if hand is not None]
        return sorted(hands, key=lambda hand: hand.suspect)

    def _pending(self, case: InputCase) -> Hand | None:
        try:
            if case.refusal is not None:
                raise case.refusal
            refusal = refusal_of(case, self.setting.options.write)
            if refusal is not None:
                raise refusal
            entry = self._entry(case)
        except (Interrupted, OutputUnusable):
            raise
        except Exception as error:  # noqa: BLE001  recorded as this case's result
            self._conclude(result_of_error(case.case_id, case.source, error, "reading"))
            return None
        if entry.result is not None:
            self._conclude(_restored(entry.result, case))
        elif entry.deaths >= MAX_DEATHS:
            self._conclude(_given_up(case, entry.deaths))
        else:
            return Hand(case, entry=entry)
        return None

    def _entry(self, case: InputCase) -> Entry:
        """The journal's entry of a case, with its result only if that still holds."""
        key = stat_key(case)
        new = Entry(case.case_id, case.source, self.setting.run_key, key, "")
        old = self._entries.get(case.case_id)
        if old is None or old.run_key != new.run_key:
            return new
        unchanged = old.stat_key == key or (old.content_key != "" and old.content_key == content_key(case))
        if not unchanged:
            return new
        usable = old.result is not None and old.result["status"] != "failed" and self._outputs_hold(old.result)
        return replace(old, stat_key=key, source=case.source, result=old.result if usable else None)

    def _outputs_hold(self, result: Mapping[str, Any]) -> bool:
        """Whether every output is still the file that was written: by size, then by SHA-256."""
        known = result.get("checksums", {})
        held = [self._holds(str(name), known.get(name)) for name in result["outputs"]]  # each is looked at
        return all(held)

    def _holds(self, name: str, known: Mapping[str, Any] | None) -> bool:
        path = self.setting.folder / name
        if not path.is_file():
            return False
        if known is not None and path.stat().st_size == known["bytes"] and sha256_file(path) == known["sha256"]:
            return True
        kept = path.replace(path.with_name(f"{name}{_CHANGED}"))
        _log.warning("%s is not what was written; it is computed again, what was there is now %s", name, kept.name)
        return False

    # --- what became of the cases ----------------------------------------------------------------------------------

    def begin(self, hand: Hand, *, here: bool) -> None:
        """Note that a case is in hand; if it is ``here``, as a death until it is settled.

        A case that kills the process is thereby given up after a few tries.
        """
        self._open[hand.case.case_id] = hand
        if here:
            self._journal.write(replace(hand.entry, deaths=hand.entry.deaths + 1))

    def died(self, hand: Hand) -> None:
        """Note that a worker died with a case in hand."""
        self._open.pop(hand.case.case_id, None)
        hand.entry = replace(hand.entry, deaths=hand.entry.deaths + 1)
        self._journal.write(hand.entry)

    def settle(self, hand: Hand, result: CaseResult) -> None:
        """Note the result of a case."""
        key = hand.content_key or hand.entry.content_key
        self._journal.write(replace(hand.entry, content_key=key, result=asdict(result)))
        self._open.pop(result.case_id, None)
        self.computed += 1
        self._conclude(result)

    def forget_open(self) -> None:
        """After an interruption: what is in hand was not finished, and nothing died."""
        for hand in self._open.values():
            self._journal.write(hand.entry)
        self._open.clear()

    def _conclude(self, result: CaseResult) -> None:
        self.results[result.case_id] = result
        if self.progress is not None:
            self.progress(len(self.results), len(self.cases), result)


def _distinct(case: InputCase, old: Entry | None) -> InputCase:
    """The case, under another name if an earlier run has used its name for other bytes from another place."""
    if old is None or old.content_key == "" or Path(old.source).absolute() == Path(case.source).absolute():
        return case
    if case.refusal is not None or old.content_key == content_key(case):
        return case
    return with_path_hash(case)


def _restored(row: Any, case: InputCase) -> CaseResult:
    values = {**row, "source": case.source, "outputs": tuple(row["outputs"]), "structures": tuple(row["structures"])}
    return CaseResult(**values)


def _given_up(case: InputCase, deaths: int) -> CaseResult:
    message = (
        f"the process died {deaths} times while this case was in hand (out of memory, or a crash in a decoder);"
        " it was given up so that the others finish; try it alone with --fresh, or crop with --roi"
    )
    return CaseResult(case.case_id, case.source, "failed", "crashed", message)
