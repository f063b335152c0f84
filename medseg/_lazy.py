"""Faces of rooms whose public names are imported when they are first used, so that asking for one costs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(face: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a room's ``__init__``.

    ``face``: its ``__name__``. ``homes``: modules of the room (or others by their full names), each with the names that
    are public there, separated by spaces.
    """
    home_of = {
        name: module if module.startswith("medseg.") else f"{face}.{module}"
        for module, names in homes.items()
        for name in names.split()
    }

    def attribute(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return attribute
