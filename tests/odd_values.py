"""Every part of a JSON value in turn as something else: what a reader of strangers' files has to bear."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError

__all__ = ["BROKEN", "ODD", "Place", "crashes", "places", "variants"]

Place = tuple[Any, ...]

ODD: tuple[Any, ...] = (
    5, -1, 0.5, "x", "", "é\0", "\ud800", None, True, [], {}, [1], [None], [[]], {"a": 1}, {"a": None},
    float("nan"), float("inf"), 10**400, "9" * 5000, json.loads("[" * 200 + "]" * 200),
)  # fmt: skip
"""Values of every kind, and some that are hard to bear."""

BROKEN = (
    b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 990 + b"]" * 990, b"[" * 100_000, b"null", b"5", b'{"a":1,"a":2}', b"{",
    b"NaN", b"\0" * 10, "é".encode("latin-1"),
)  # fmt: skip
"""Files that are no JSON, or nearly none."""


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """The way to every part of a value, the whole first."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def variants(value: Any, step: int = 1) -> Iterator[tuple[Place, Any, Any]]:
    """Every ``step``-th part in turn as each of the odd values, and left out: where, what, and the whole value."""
    for at in list(places(value))[::step]:
        for odd in ODD:
            yield at, odd, _with(value, at, odd)
        if at:
            yield at, "left out", _with(value, at)


def _with(value: Any, at: Place, *odd: Any) -> Any:
    if not at:
        return odd[0]
    value = copy.deepcopy(value)
    target = value
    for key in at[:-1]:
        target = target[key]
    if odd:
        target[at[-1]] = odd[0]
    else:
        del target[at[-1]]
    return value


def crashes(
    file: Path, value: Any, read: Callable[[], object], *, step: int = 1, allowed: tuple[type[Exception], ...] = ()
) -> list[str]:
    """Where reading a file with odd parts ends in another error than one of medseg's own, of one line, or in none."""
    found, sound = [], json.dumps(value).encode()
    cases = [(str(at), str(odd)[:20], json.dumps(odd_value).encode()) for at, odd, odd_value in variants(value, step)]
    cases += [("all", str(data[:20]), data) for data in BROKEN]
    for at, odd, data in cases:
        file.write_bytes(data)
        try:
            read()
        except MedsegError as error:
            if "\n" in str(error):
                found.append(f"{at} as {odd}: several lines")
        except allowed:
            pass
        except Exception as error:  # noqa: BLE001  whatever it is
            found.append(f"{at} as {odd}: {type(error).__name__}: {str(error)[:80]}")
    file.write_bytes(sound)
    read()
    return found
