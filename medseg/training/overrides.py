"""Overrides of a bundle's configuration: parsed from text, and refused when the configuration has no such id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from medseg.errors import UsageError

__all__ = ["check_overrides", "parse_overrides", "suggestion"]


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """``["epochs=3", "device=cpu"]`` → ``{"epochs": 3, "device": "cpu"}``; values are JSON where they can be.

    >>> parse_overrides(["epochs=3", "patch_size=[32, 32, 32]", "device=cpu"])
    {'epochs': 3, 'patch_size': [32, 32, 32], 'device': 'cpu'}

    Raises
    ------
    UsageError
        If one of them has no ``=``.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UsageError(f"found the setting {assignment!r}, expected ID=VALUE, for example --set epochs=20")
        try:
            parsed[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name.strip()] = text
    return parsed


def check_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse ids that the configuration does not have: MONAI would add them silently and train with the default.

    Raises
    ------
    UsageError
        Naming the unknown id and the closest known ones.
    """
    known = list(_ids(config))
    for name in overrides:
        wanted = name.replace("::", "#")
        if wanted in known:
            continue
        raise UsageError(f"the bundle's training configuration has no id {name!r}; {suggestion(wanted, known)}")


def suggestion(name: str, known: Sequence[str]) -> str:
    """What the writer of an unknown id may have meant."""
    close = get_close_matches(name.replace("::", "#"), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known ids are: {', '.join(k for k in known if '#' not in k)}"


def _ids(value: Any, prefix: str = "") -> Iterator[str]:
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for key, child in items:
        yield f"{prefix}{key}"
        yield from _ids(child, f"{prefix}{key}#")
