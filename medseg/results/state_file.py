"""The state file of a batch run, for whoever did not write it: rows of finished and unfinished cases, checked."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.files import shown
from medseg.json_shape import TEXT, misfit, parse_json, whole
from medseg.results.case_result import CASE

STATE_NAME = ".medseg-journal.sqlite"
"""What a batch run has finished so far; the run's own bookkeeping, in the folder of its outputs."""

_ROW = {
    "case_id": TEXT,
    "source": ((lambda value: isinstance(value, bytes)), "the bytes of a path"),
    **dict.fromkeys(("run_key", "stat_key", "content_key"), TEXT),
    "deaths": whole(0),
    "result": CASE,
}
"""A row of the table ``cases`` of a run's state file."""


def stored_cases(
    path: Path, connection: sqlite3.Connection, columns: Sequence[str] = tuple(_ROW)
) -> list[dict[str, Any]]:
    """The rows of a run's state file by column, ``result`` as parsed JSON, which fits :class:`CaseResult`.

    Raises ``UsageError`` if they are not as `medseg infer` writes them.
    """
    remedy = "run `medseg infer` again, with --fresh, or remove it"
    try:
        found = connection.execute(f"SELECT {', '.join(columns)} FROM cases").fetchall()  # noqa: S608  our words
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        for row in rows:
            row["result"] = None if row["result"] is None else parse_json(str(row["result"]).encode())
    except (sqlite3.Error, ValueError) as error:
        raise UsageError(f"{shown(path)} cannot be read as a run's journal ({error}); {remedy}") from error
    required = {name if name == "result" else f"{name}!": _ROW[name] for name in columns}
    if wrong := misfit(rows, [required], "row "):
        raise UsageError(f"{shown(path)} is not as `medseg infer` writes it: {wrong}; {remedy}")
    return rows
