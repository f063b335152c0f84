"""What is printed: one function makes any text fit for a terminal, and every way there leads through it.

Names of files, header fields, what a bundle says of itself and what an exception quotes come from others. They may hold
escape sequences, line breaks that forge a line, characters that turn the direction of writing, rich's markup, and
megabytes. JSON needs none of this: it escapes what is not ASCII.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

from medseg.files import shown

_LONGEST = 2000
"""Characters of one text that are printed."""


def printable(text: object) -> str:
    """A text as one line of at most 2000 characters, without control characters and changes of direction."""
    line = shown(str(text)[: _LONGEST + 1])
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def printable_lines(text: object) -> str:
    """As :func:`printable`, for a text of several lines: those after the first are indented, so that none is forged."""
    first, *others = str(text).split("\n")
    return "\n".join([printable(first), *(f"  {printable(line)}" for line in others)])


class _PlainFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        record.message = printable_lines(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  as above
        return printable_lines(super().formatException(ei))


def print_plainly() -> None:
    """Have logs, warnings and tracebacks of this process pass through :func:`printable`."""
    logging.basicConfig(stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    warnings.formatwarning = _plain_warning  # libraries quote header fields in theirs
    sys.excepthook = _plain_traceback


def _plain_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    del line
    return f"{printable(filename)}:{lineno}: {category.__name__}: {printable_lines(message)}\n"


def _plain_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
    sys.stderr.write("\n".join(map(printable, lines)) + "\n")
