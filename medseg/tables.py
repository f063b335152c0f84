"""Tables as CSV: the one writer, which no spreadsheet takes for formulas, and the one reader, which undoes that.

A cell whose first character that shows is one of ``= + - @`` (or one that a spreadsheet reads as such), or that begins
with a tab or a line break, gets an apostrophe in front; a number stays a number. Control characters are replaced, but
tabs and line breaks, so that a table can be printed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from medseg.errors import UsageError
from medseg.files import shown

_START = r"(?:[\t\r\n]|\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20\uFE66\uFE62\uFE63\uFE6B\u2212])"
"""How a formula begins; full-width and small forms of the four signs, and the minus sign, count as well."""
_FORMULA, _GUARDED = re.compile(f"'*{_START}"), re.compile(f"'+{_START}")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_BREAKS = re.compile(r"([\t\r\n])")
_QUOTED = frozenset(',"\r\n')


def table_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front, a number none.

    ``None`` becomes an empty field; floats have full precision.
    """
    return "".join((",".join(map(_field, row)) or '""') + "\n" for row in rows)


@dataclass(frozen=True)
class Table:
    """A table that was read: its columns, and the texts of each row by column."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def read_table(path: Path, *, delimiter: str = ",") -> Table:
    """Read a table with a head, as :func:`table_text` writes it; fields that a row lacks are empty.

    Raises ``UsageError`` if it is no table, or a row has more fields than the head.
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


def _field(value: object) -> str:
    """A cell as it stands in the file. Python's own writer leaves a carriage return bare, which ends a row."""
    text = "" if value is None else str(value)
    if isinstance(value, str):
        text = text if text.isprintable() else "".join(map(_readable, _BREAKS.split(text)))
        text = f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
    return '"' + text.replace('"', '""') + '"' if _QUOTED & {*text} else text


def _readable(part: str) -> str:
    return part if _BREAKS.fullmatch(part) else shown(part)


def _unguarded(text: str) -> str:
    return text[1:] if _GUARDED.match(text) else text
