"""The state file of a run as a killed process leaves it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from medseg.results.state_file import STATE_NAME


def unsettle(folder: Path, **deaths: int) -> None:
    """Take the results of cases away, as if processes had died with them in hand so often; 0: it was never begun."""
    with closing(sqlite3.connect(folder / STATE_NAME)) as connection, connection:
        for case_id, count in deaths.items():
            connection.execute("UPDATE cases SET result = NULL, deaths = ? WHERE case_id = ?", (count, case_id))
