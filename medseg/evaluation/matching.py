"""Which structures of several bundles or result folders are the same one: by coded terms, by names, or by a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg.errors import UsageError
from medseg.evaluation.structures import plain
from medseg.labels.scheme import listed
from medseg.tables import read_table

_STRUCTURE = "structure"
_ADVICE = (
    "give a table with --match: a column `structure` and one for each of them, which holds the structure's name or "
    "value there, parts joined by +"
)
Term = tuple[tuple[str, str], ...]
"""Value and scheme of a structure's type, its modifier or side, and its region."""


@dataclass(frozen=True)
class Offered:
    """A structure as one reader has it: its name, its values in a label map, and its coded term if that is known."""

    name: str
    values: tuple[int, ...]
    term: Term | None = None


@dataclass(frozen=True)
class Matched:
    """A structure that several readers have, by the reader's name, and what told that it is the same."""

    name: str
    members: Mapping[str, Offered]
    by: Literal["code", "name", "table"]


def term_of(stated: Any) -> Term | None:
    """The term in an entry of a bundle's ``segment_codes``; None if it states no type. A side may stand as modifier."""
    if not isinstance(stated, Mapping) or not stated.get("type"):
        return None
    parts = (stated["type"], stated.get("laterality") or stated.get("modifier"), stated.get("region"))
    return tuple(_code(part) if part else ("", "") for part in parts)


def _code(part: Any) -> tuple[str, str]:
    value, scheme = (part.get("value"), part.get("scheme")) if isinstance(part, Mapping) else tuple(part)[:2]
    return str(value), str(scheme)


def match(readers: Mapping[str, Sequence[Offered]]) -> tuple[list[Matched], dict[str, list[str]]]:
    """Match structures by equal terms, and by equal names where one of the two has no term.

    A term that a reader has twice tells nothing. Returns what at least two readers have, in the order of the first, and
    by reader the names of what has no partner. Raises ``UsageError`` if no structure has a partner.
    """
    groups: list[dict[str, Offered]] = []
    for reader, offered in readers.items():
        times = Counter(one.term for one in offered)
        for one in offered:
            own = one if times[one.term] == 1 else Offered(one.name, one.values)
            free = [group for group in groups if reader not in group]
            found = next((group for group in free if any(_same_term(own, other) for other in group.values())), None)
            alike = (group for group in free if not any(_other_term(own, other) for other in group.values()))
            found = found or next((group for group in alike if any(_same_name(own, o) for o in group.values())), None)
            if found is None:
                groups.append(found := {})
            found[reader] = own
    matched = [
        Matched(next(iter(group.values())).name, group, "code" if all(o.term for o in group.values()) else "name")
        for group in groups
        if len(group) > 1
    ]
    if not matched:
        shown = "; ".join(f"{name}: {listed([one.name for one in found]) or 'none'}" for name, found in readers.items())
        raise UsageError(f"no structure is the same by its coded term or its name ({shown}); {_ADVICE}")
    return matched, _alone(readers, matched)


def _same_term(one: Offered, other: Offered) -> bool:
    return one.term is not None and one.term == other.term


def _other_term(one: Offered, other: Offered) -> bool:
    return one.term is not None and other.term is not None and one.term != other.term


def _same_name(one: Offered, other: Offered) -> bool:
    return (one.term is None or other.term is None) and plain(one.name) == plain(other.name)


def match_by_table(path: Path, readers: Mapping[str, Sequence[Offered]]) -> tuple[list[Matched], dict[str, list[str]]]:
    """Match structures as a table says: ``structure``, then a column for each reader with a name or value, or several
    joined by ``+``; an empty field where a reader has none.

    Raises ``UsageError`` if a column is missing, a field names nothing that the reader has, or a row leaves fewer than
    two of them.
    """
    table = read_table(path)
    if lacking := [name for name in (_STRUCTURE, *readers) if name not in table.columns]:
        raise UsageError(f"{path.name} has no column {listed(lacking)}, found {listed(table.columns)}; {_ADVICE}")
    matched = []
    for row in table.rows:
        members = {
            name: _named(row[name].strip(), offered, f"{path.name}, {row[_STRUCTURE]}, {name}")
            for name, offered in readers.items()
            if row[name].strip()
        }
        if len(members) < 2:
            raise UsageError(f"{path.name}: {row[_STRUCTURE]!r} stands in {len(members)} of them, expected at least 2")
        matched.append(Matched(row[_STRUCTURE], members, "table"))
    if not matched or len({one.name for one in matched}) < len(matched):
        raise UsageError(f"{path.name} names {len(matched)} structures, expected one row for each, at least one")
    return matched, _alone(readers, matched)


def _named(text: str, offered: Sequence[Offered], where: str) -> Offered:
    """A structure by its name, else several of them, or values, joined by ``+``."""
    known = {plain(one.name): one for one in offered}
    if plain(text) in known and "+" not in text:
        return known[plain(text)]
    values: list[int] = []
    held = {str(value) for one in offered for value in one.values}
    for part in text.split("+"):
        if plain(part) not in known and part.strip() not in held:
            expected = listed([one.name for one in offered])
            raise UsageError(f"{where}: found {part.strip()!r}, expected {expected} or values of these")
        values += known[plain(part)].values if plain(part) in known else [int(part)]
    return Offered(text, tuple(dict.fromkeys(values)))


def _alone(readers: Mapping[str, Sequence[Offered]], matched: Sequence[Matched]) -> dict[str, list[str]]:
    used = {
        name: {value for one in matched if name in one.members for value in one.members[name].values}
        for name in readers
    }
    return {
        name: [one.name for one in offered if used[name].isdisjoint(one.values)] for name, offered in readers.items()
    }
