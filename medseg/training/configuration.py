"""The configuration that a part of a run is built from: its ids, checked, and its values as they were used.

Overrides of a bundle's configuration: parsed from text, and refused when the configuration has no such id.
"""

from __future__ import annotations

import inspect
import json
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import FrameType
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from medseg.bundle.config import ids, item_at
from medseg.errors import BundleError, UsageError

_OF_TRACKING = frozenset(DEFAULT_MLFLOW_SETTINGS["configs"]) - frozenset(DEFAULT_MLFLOW_SETTINGS["handlers_id"])
"""Ids that MONAI's own ``--tracking`` adds, all of them together."""


def enclosing_parser() -> ConfigParser | None:
    """The parser that is evaluating a configuration right now, in whose course this call happens; None without one.

    MONAI hands an expression or a component nothing but the references written in it, and an id that nobody asked
    for cannot be written there, so the parser is looked up among the callers.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def check_ids(known: Sequence[str]) -> None:
    """Refuse ids that the bundle does not know; for the list ``initialize`` of a configuration.

    MONAI adds an id that is given on the command line to the configuration, whether anything uses it or not, and a
    typo then trains with the default.

    Parameters
    ----------
    known
        Ids on the first level, and those inside of each group that is listed like ``train#dataset``. What is inside
        of a component is left to its class, which refuses arguments that it does not have.

    Raises
    ------
    UsageError
        Naming every unknown id and the closest known ones.
    BundleError
        If no configuration is being evaluated.
    """
    parser = enclosing_parser()
    if parser is None:
        raise BundleError("check_ids was called from outside; expected it in the list 'initialize' of a configuration")
    listed = [name.replace("::", "#") for name in known]  # MONAI writes its separator into what it resolves
    unknown = list(_unknown(parser.config, frozenset(listed), parser.meta_key))
    if unknown:
        found = "; ".join(f"{name!r} ({suggestion(name, listed)})" for name in unknown)
        raise UsageError(
            f"this bundle has no use for the id(s) {found}. Correct or leave out what it does not know; ids of a "
            "configuration file of your own are listed there under '+known_ids'"
        )


def _unknown(config: Mapping[str, Any], known: frozenset[str], meta: str) -> Iterator[str]:
    groups = {"", *(name.rpartition("#")[0] for name in known)}
    allowed = known | {meta} | (_OF_TRACKING if set(config) >= _OF_TRACKING else set())
    for group in sorted(groups):
        children = item_at(config, group)
        if isinstance(children, Mapping):
            prefix = f"{group}#" if group else ""
            yield from (f"{prefix}{name}" for name in children if f"{prefix}{name}" not in allowed)


def values_used(parser: ConfigParser) -> dict[str, Any]:
    """The configuration as JSON: ids on the first level by the value they had, the rest as written.

    Only what has been built already is evaluated; metadata are left out.
    """
    resolved = parser.ref_resolver.resolved_content
    config = {name: value for name, value in parser.config.items() if name != parser.meta_key}
    used = {name: resolved[name] for name in config if name in resolved and _is_data(resolved[name])}
    plain: dict[str, Any] = json.loads(json.dumps({**config, **used}, default=str))
    return plain


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_data(item) for item in value)
    return value is None or isinstance(value, str | int | float)


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
    known = list(ids(config, "#"))
    for name in overrides:
        wanted = name.replace("::", "#")
        if wanted in known or _is_argument(config, wanted):
            continue
        raise UsageError(f"the bundle's training configuration has no id {name!r}; {suggestion(wanted, known)}")


def _is_argument(config: Any, name: str) -> bool:
    """Whether ``name`` is an argument, by its name, of the component that it would be written into."""
    parents, _, argument = name.rpartition("#")
    component = item_at(config, parents)
    if not ConfigComponent.is_instantiable(component):
        return False
    target = ConfigComponent(component, locator=_LOCATOR).resolve_module_name()
    found = pydoc.locate(target) if isinstance(target, str) else target
    parameter = inspect.signature(found).parameters.get(argument) if callable(found) else None
    return parameter is not None and parameter.kind is not parameter.VAR_KEYWORD


def suggestion(name: str, known: Sequence[str]) -> str:
    """What the writer of an unknown id may have meant."""
    close = get_close_matches(name.replace("::", "#"), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known ids are: {', '.join(k for k in known if '#' not in k)}"
