"""Tables as CSV: the one writer, which no spreadsheet takes for formulas, and the one reader, which undoes that."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from medseg.errors import UsageError

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


def table_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front, a number none.

    ``None`` becomes an empty field; floats have full precision.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_guarded(value) for value in row] for row in rows)
    return text.getvalue()


@dataclass(frozen=True)
class Table:
    """A table that was read: its columns, and the texts of each row by column."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def read_table(path: Path, *, delimiter: str = ",") -> Table:
    """Read a table with a head, as :func:`table_text` writes it; fields that a row lacks are empty.

    Raises
    ------
    UsageError
        If it is no table, or a row has more fields than the head.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            lines = [[_unguarded(field) for field in line] for line in csv.reader(handle, delimiter=delimiter) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path.name} cannot be read as a table ({error}); write it again") from error
    columns, *rows = lines or [[]]
    for number, row in enumerate(rows, start=1):
        if len(row) > len(columns):
            raise UsageError(
                f"{path.name}: row {number} has {len(row)} fields, the head {len(columns)}; write it again"
            )
    return Table(tuple(columns), tuple(dict(zip_longest(columns, row, fillvalue="")) for row in rows))


def _guarded(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def _unguarded(text: str) -> str:
    return text[1:] if _GUARDED.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
