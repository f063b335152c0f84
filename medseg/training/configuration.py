"""The configuration that a part of a run is built from: its ids, checked, and its values as they were used."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from medseg.errors import BundleError, UsageError
from medseg.training.overrides import suggestion

__all__ = ["check_ids", "enclosing_parser", "values_used"]

_OF_TRACKING = frozenset(DEFAULT_MLFLOW_SETTINGS["configs"])
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
    unknown = list(_unknown(parser.config, frozenset(known), parser.meta_key))
    if unknown:
        found = "; ".join(f"{name!r}: {suggestion(name, list(known))}" for name in unknown)
        raise UsageError(
            f"the configuration of this bundle does not use the id(s) {found}. "
            "An id of your own configuration file is listed there under '+known_ids'"
        )


def _unknown(config: Mapping[str, Any], known: frozenset[str], meta: str) -> Iterator[str]:
    groups = {"", *(name.rpartition("#")[0] for name in known)}
    allowed = known | {meta} | (_OF_TRACKING if set(config) >= _OF_TRACKING - {"trainer", "evaluator"} else set())
    for group in sorted(groups):
        children = config if not group else _at(config, group.split("#"))
        if isinstance(children, Mapping):
            prefix = f"{group}#" if group else ""
            yield from (f"{prefix}{name}" for name in children if f"{prefix}{name}" not in allowed)


def _at(config: Any, path: Sequence[str]) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


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
