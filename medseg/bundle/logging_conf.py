"""Judge ``logging.conf``: Python's logging reads class names and arguments from it and evaluates them."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator

from medseg.bundle.findings import Finding

__all__ = ["judge_logging_conf"]

_HANDLERS = frozenset({"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"})
_ARGUMENTS = re.compile(r"\(\s*(sys\.(stdout|stderr)\s*,?\s*)?\)")
_OPTIONS = {
    "handler": frozenset({"class", "level", "formatter", "args"}),
    "formatter": frozenset({"format", "datefmt", "style", "class", "validate"}),
    "logger": frozenset({"level", "handlers", "qualname", "propagate"}),
}


def judge_logging_conf(text: str, file: str) -> list[Finding]:
    """Findings on a ``logging.conf``: only handlers that write to the terminal, with literal arguments, are allowed."""
    parser = configparser.ConfigParser()
    try:
        parser.read_string(text)
        problems = list(_problems(parser))
    except (configparser.Error, ValueError) as error:
        problems = [("", f"it cannot be read: {str(error).splitlines()[0]}")]
    why = "Python's logging would import and evaluate it; use a StreamHandler with (sys.stdout,)"
    return [Finding("block", file, place, what, why) for place, what in problems]


def _problems(parser: configparser.ConfigParser) -> Iterator[tuple[str, str]]:
    if parser.defaults():
        yield "DEFAULT", "defaults apply to every section"
    for section in parser.sections():
        if section in {"loggers", "handlers", "formatters"}:
            allowed = frozenset({"keys"})
        else:
            allowed = _OPTIONS.get(section.partition("_")[0], frozenset())
        for option in parser[section]:
            if option not in allowed:
                yield section, f"the option {option!r} is not allowed"
            elif option in {"class", "args"}:
                yield from _evaluated(section, option, parser.get(section, option))


def _evaluated(section: str, option: str, value: str) -> Iterator[tuple[str, str]]:
    if option == "args" and not _ARGUMENTS.fullmatch(value.strip()):
        yield section, f"args = {value!r}"
    if option == "class" and section.startswith("handler") and value.strip() not in _HANDLERS:
        yield section, f"class = {value!r}"
    if option == "class" and section.startswith("formatter") and value.strip() != "logging.Formatter":
        yield section, f"class = {value!r}"
