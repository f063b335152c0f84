"""The form of a JSON value that another run wrote, checked where it is read, so that nothing later trips over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Spec = Any
"""A test of one value; ``[spec]`` for a list; ``{key: spec}`` for an object: keys that end in ``!`` must be there,
``*`` stands for all others. What is ``null`` counts as absent."""

_LARGEST = 1e300


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def one_of(*texts: str) -> Spec:
    """The test that a value is one of these texts."""
    return (lambda value: isinstance(value, str) and value in texts), f"one of {', '.join(texts)}"


TEXT, FLAG, NUMBER = (_is(str), "a text"), (_is(bool), "true or false"), (_number, "a number")
WHOLE = (lambda value: isinstance(value, int) and _number(value)), "a whole number"
PLACE = (lambda value: isinstance(value, list) and len(value) == 3 and all(map(_number, value))), "three numbers"


def misfit(value: object, spec: Spec, where: str = "") -> str:
    """The first part of a JSON value that is not as expected, in words; empty if all of it fits."""
    return next(_misfits(value, spec, where), "")


def _misfits(value: object, spec: Spec, where: str) -> Iterator[str]:
    if isinstance(spec, list):
        if not isinstance(value, list):
            yield _misfit(where, "a list", value)
            return
        for number, part in enumerate(value):
            yield from _misfits(part, spec[0], f"{where}[{number}]")
    elif isinstance(spec, Mapping):
        if not isinstance(value, Mapping):
            yield _misfit(where, "an object", value)
            return
        yield from _keys(value, spec, where)
    else:
        fits: Callable[[object], bool]
        fits, expected = spec
        if not fits(value):
            yield _misfit(where, expected, value)


def _keys(value: Mapping[str, Any], spec: Mapping[str, Spec], where: str) -> Iterator[str]:
    for key, inner in spec.items():
        name = key.removesuffix("!")
        if key == "*":
            for other, part in value.items():
                yield from _misfits(part, inner, f"{where}.{other}")
        elif value.get(name) is not None:
            yield from _misfits(value[name], inner, f"{where}.{name}".lstrip("."))
        elif key.endswith("!"):
            yield f"{where or 'it'} has no {name}"


def _misfit(where: str, expected: str, value: object) -> str:
    return f"{where or 'it'} is a {type(value).__name__}, expected {expected}"
