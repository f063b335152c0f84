"""The listener's memory: which studies arrived, what became of them, which results were sent where.

One SQLite file in rollback-journal mode. A study walks ``receiving → waiting → running → sending → done``, or ends as
``failed`` after bounded attempts; every step is one transaction, so a killed process finds each study where it was.
An instance that arrives later than ``receiving`` opens its study again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medseg.errors import UsageError
from medseg.files import shown

State = Literal["receiving", "waiting", "running", "sending", "done", "failed"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (
    study TEXT PRIMARY KEY, state TEXT NOT NULL, revision INTEGER NOT NULL DEFAULT 1, last_arrival REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, message TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS instance (study TEXT NOT NULL, instance TEXT NOT NULL, PRIMARY KEY (study, instance));
CREATE TABLE IF NOT EXISTS sent (
    study TEXT NOT NULL, file TEXT NOT NULL, destination TEXT NOT NULL, PRIMARY KEY (study, file, destination)
);
"""

_ODD = f"""
SELECT 1 FROM study WHERE state NOT IN ({", ".join(f"'{state}'" for state in get_args(State))})
    OR typeof(study) <> 'text' OR typeof(message) <> 'text' OR typeof(revision) <> 'integer'
    OR typeof(attempts) <> 'integer' OR typeof(last_arrival) NOT IN ('real', 'integer')
    OR typeof(not_before) NOT IN ('real', 'integer') LIMIT 1
"""  # noqa: S608  our words
"""Finds a row that is not as this module writes it."""
_REMEDY = "make room, check its permissions, or move it away: the queue then starts anew"


@dataclass(frozen=True)
class Study:
    """One study in the queue.

    ``study`` is the hash of its StudyInstanceUID; ``revision`` grows with every new instance, so that work on an
    older state of the study is told from work on the present one.
    """

    study: str
    state: State
    revision: int
    attempts: int
    message: str


class Queue:
    """The queue in ``path``; safe to use from several threads of one process. A ``UsageError`` if it cannot be used."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.executescript(_SCHEMA)
            odd = self._database.execute(_ODD).fetchone()
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{shown(path)} cannot be used as a queue ({error}); {_REMEDY}") from error
        if odd is not None:
            self._database.close()
            raise UsageError(f"{shown(path)} holds studies that medseg has not written; {_REMEDY}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _do(self, statement: str, *values: str | float) -> list[Any]:
        """The rows that one statement gives, in a transaction of its own."""
        with self._transaction() as database:
            return database.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def recover(self) -> None:
        """After a crash: what was running waits again; what was being sent goes on with what is left."""
        self._do("UPDATE study SET state = 'waiting' WHERE state = 'running'")

    def arrived(self, study: str, instance: str, *, changed: bool, now: float) -> None:
        """Note at time ``now`` (s) an instance whose file lies in place; ``changed`` says that its bytes are new.

        Whether it is new to the study is decided here, not by the file: a process killed between writing the file
        and this call gets the instance again from its sender, and must not mistake it for a duplicate.
        """
        with self._transaction() as database:
            added = database.execute("INSERT OR IGNORE INTO instance VALUES (?, ?)", (study, instance)).rowcount
            if added or changed:
                database.execute(
                    """INSERT INTO study (study, state, last_arrival) VALUES (?, 'receiving', ?)
                       ON CONFLICT (study) DO UPDATE SET state = 'receiving', revision = revision + 1, attempts = 0,
                       not_before = 0, message = '', last_arrival = excluded.last_arrival""",
                    (study, now),
                )
            else:
                database.execute(
                    "UPDATE study SET last_arrival = ? WHERE study = ? AND state = 'receiving'", (now, study)
                )

    def close_quiet(self, before: float) -> None:
        """Call studies complete that received nothing since ``before`` (s)."""
        self._do("UPDATE study SET state = 'waiting' WHERE state = 'receiving' AND last_arrival <= ?", before)

    def complete(self, study: str) -> None:
        """Call one study complete: everything of it has come."""
        self._do("UPDATE study SET state = 'waiting' WHERE study = ? AND state = 'receiving'", study)

    def refuse(self, study: str, message: str, now: float) -> None:
        """End a study of which nothing is wanted as ``failed``, with the reason."""
        self._do(
            """INSERT INTO study (study, state, last_arrival, message) VALUES (?, 'failed', ?, ?)
               ON CONFLICT (study) DO UPDATE SET state = 'failed', message = excluded.message""",
            *(study, now, message),
        )

    def revive(self, study: str) -> None:
        """Give a failed study new attempts, from its arrival on; what was computed or sent is not done again."""
        self._do(
            """UPDATE study SET state = 'receiving', attempts = 0, not_before = 0, message = ''
               WHERE study = ? AND state = 'failed'""",
            study,
        )

    def next_due(self) -> float | None:
        """When (s) the next study may be taken, which may be past; None if nothing is left to do."""
        [(due,)] = self._do("SELECT MIN(not_before) FROM study WHERE state IN ('waiting', 'running', 'sending')")
        return None if due is None else float(due)

    def state_of(self, study: str) -> State | None:
        """State of a study; None if it is unknown."""
        rows = self._do("SELECT state FROM study WHERE study = ?", study)
        return rows[0][0] if rows else None

    def take(self, now: float) -> Study | None:
        """The next study to compute (it is then ``running``) or whose results are to be sent, or None."""
        with self._transaction() as database:
            row = database.execute(
                """SELECT study, state, revision, attempts, message FROM study
                    WHERE state IN ('waiting', 'sending') AND not_before <= ?
                    ORDER BY state = 'sending' DESC, last_arrival LIMIT 1""",
                (now,),
            ).fetchone()
            if row is None:
                return None
            database.execute("UPDATE study SET state = 'running' WHERE study = ? AND state = 'waiting'", (row[0],))
        return Study(*row)

    def advance(self, study: Study, state: State, message: str = "") -> None:
        """Move a study on, unless an instance arrived meanwhile and opened it again."""
        statement = "UPDATE study SET state = ?, message = ?, attempts = 0 WHERE study = ? AND revision = ?"
        self._do(statement, state, message, study.study, study.revision)

    def postpone(self, study: Study, message: str, *, attempts: int, until: float) -> None:
        """Count a failed attempt; try again after ``until`` (s), or fail the study after ``attempts``."""
        state = "failed" if study.attempts + 1 >= attempts else "sending" if study.state == "sending" else "waiting"
        self._do(
            """UPDATE study SET state = ?, message = ?, attempts = attempts + 1, not_before = ?
               WHERE study = ? AND revision = ?""",
            *(state, message, until, study.study, study.revision),
        )

    def was_sent(self, study: str, file: str, destination: str) -> bool:
        """Whether a result reached a destination."""
        statement = "SELECT 1 FROM sent WHERE study = ? AND file = ? AND destination = ?"
        return bool(self._do(statement, study, file, destination))

    def mark_sent(self, study: str, file: str, destination: str) -> None:
        """Note that a result reached a destination."""
        self._do("INSERT OR IGNORE INTO sent VALUES (?, ?, ?)", study, file, destination)

    def counts(self) -> dict[State, int]:
        """How many studies there are in each state."""
        found = dict(self._do("SELECT state, COUNT(*) FROM study GROUP BY state"))
        return {state: found.get(state, 0) for state in get_args(State)}

    def is_full(self, study: str, most: int) -> bool:
        """Whether so many studies are not answered yet that ``study``, if it is new or was answered, must wait."""
        if self.state_of(study) not in (None, "done", "failed"):
            return False
        counts = self.counts()
        return sum(counts.values()) - counts["done"] - counts["failed"] >= most

    def studies(self) -> list[Study]:
        """Every study, oldest arrival first."""
        rows = self._do("SELECT study, state, revision, attempts, message FROM study ORDER BY last_arrival")
        return [Study(*row) for row in rows]
