"""Overrides of a bundle's configuration: parsed from text, and refused when the configuration has no such id."""

from __future__ import annotations

import inspect
import json
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent

from medseg.errors import UsageError

__all__ = ["check_overrides", "parse_overrides", "suggestion"]

_LOCATOR = ComponentLocator()


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

    What the class of a component takes, such as ``adversary#schedule#alternate``, is an id although it is not written.

    Raises
    ------
    UsageError
        Naming the unknown id and the closest known ones.
    """
    known = list(_ids(config))
    for name in overrides:
        wanted = name.replace("::", "#")
        if wanted in known or _is_argument(config, wanted):
            continue
        raise UsageError(f"the bundle's training configuration has no id {name!r}; {suggestion(wanted, known)}")


def _is_argument(config: Any, name: str) -> bool:
    """Whether ``name`` is an argument, by its name, of the component that it would be written into."""
    *parents, argument = name.split("#")
    for key in parents:
        config = (
            config.get(key) if isinstance(config, Mapping) else config[int(key)] if _is_index(config, key) else None
        )
    if not ConfigComponent.is_instantiable(config):
        return False
    target = ConfigComponent(config, locator=_LOCATOR).resolve_module_name()
    found = pydoc.locate(target) if isinstance(target, str) else target
    parameter = inspect.signature(found).parameters.get(argument) if callable(found) else None
    return parameter is not None and parameter.kind is not parameter.VAR_KEYWORD


def _is_index(config: Any, key: str) -> bool:
    return isinstance(config, list) and key.isdecimal() and int(key) < len(config)


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
