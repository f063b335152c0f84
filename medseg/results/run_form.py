"""The form of ``run.json``: what every reader may count on. Parts may be absent or null; what is there has a kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["first_problem"]

Check = Callable[[Any], bool]
Form = Mapping[str, "Check | Form | list[Form]"]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_number, value))


def _source(value: Any) -> bool:
    return _text(value) or _texts(value)


_STRUCTURE: Final[Form] = {"label!": _whole, "name!": _text, "volume_ml": _number}
_JUDGED: Final[Form] = {"label!": _whole, "name!": _text, "predicted_dice!": _number, "lower_bound!": _number}
_TRUST: Final[Form] = {
    "verdict": _text,
    "predicted_dice": _number,
    "lower_bound": _number,
    "flags": _texts,
    "structures": [_JUDGED],
    "look_at_mm": _place,
    "case_class": {"name!": _text, "probability!": _number},
}
_CASE: Final[Form] = {
    "case_id!": _text,
    "source": _source,
    "status": _text,
    "reason": _text,
    "message": _text,
    "seconds": _number,
    "outputs": _texts,
    "structures": [_STRUCTURE],
    "trust": _TRUST,
}
_RUN: Final[Form] = {
    "bundle": {"name": _text, "version": _text, "sha256": _text},
    "device": _text,
    "started": _text,
    "finished": _text,
    "trust": {
        "state": _text,
        "message": _text,
        "coverage": _number,
        "thresholds": {"accept!": _number, "reject!": _number},
    },
    "cases!": [_CASE],
    "summary": {},
}
"""Kinds by key; ``!`` marks what must be there, a list stands for any number of such objects."""


def first_problem(run: Any) -> str:
    """The first part of a ``run.json`` that is not what it should be, or empty."""
    return _problem(run, _RUN, "it")


def _problem(value: Any, form: Form, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is {_shown(value)}, expected an object"
    for key, kind in form.items():
        name = key.removesuffix("!")
        place, part = f"{where}.{name}" if where != "it" else name, value.get(name)
        if part is None:
            problem = f"{place} is absent" if key.endswith("!") else ""
        elif isinstance(kind, list):
            problem = _in_list(part, kind[0], place)
        elif isinstance(kind, Mapping):
            problem = _problem(part, kind, place)
        else:
            problem = "" if kind(part) else f"{place} is {_shown(part)}"
        if problem:
            return problem
    return ""


def _in_list(value: Any, form: Form, where: str) -> str:
    if not isinstance(value, list):
        return f"{where} is {_shown(value)}, expected a list"
    found = (_problem(part, form, f"{where}[{number}]") for number, part in enumerate(value))
    return next((problem for problem in found if problem), "")


def _shown(value: Any) -> str:
    return repr(value)[:60]
