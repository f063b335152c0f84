"""What an item of a datalist may hold, checked where the datalist is read, so that nobody meets it later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UsageError

__all__ = ["check_item"]


def check_item(item: Mapping[str, Any], datalist: Path) -> None:
    """Refuse an item whose known keys hold another kind of value than they may.

    Raises
    ------
    UsageError
        With the key, what was found and what was expected.
    """
    for key, (holds, expected) in _KINDS.items():
        value = item.get(key)
        if value is not None and not holds(value):
            shown = json.dumps(value)[:120]
            raise UsageError(f"{datalist}: {key!r} of an item is {shown}, expected {expected}; correct it")
    if not item.get("image"):
        raise UsageError(f"{datalist}: found an item without an image; give one path, or one per channel")


def _paths(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, str) and part for part in value)
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sums(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and _paths(sums) for name, sums in value.items())


_KINDS = {
    "image": (_paths, "one path or several"),
    "label": (_paths, "one path or several"),
    "case_id": (_name, "a name"),
    "patient_id": (_name, "a name"),
    "fold": (_whole, "a whole number"),
    "sha256": (_sums, 'sums by key, as {"image": "...", "label": "..."}'),
}
