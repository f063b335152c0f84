"""JSON that somebody else wrote, read and checked where it comes in, so that nothing later trips over it.

:func:`parse_json` takes what JSON allows and Python's parser hides or cannot bear: bytes that are no text, a key that
stands twice, numbers that are none, lists nested a thousand deep. :func:`misfit` compares what was read with its form.
:func:`read_json` does both for a file, and says what was found, where, and what to do.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from medseg.errors import MedsegError, UsageError
from medseg.files import read_bounded as read_bounded
from medseg.files import shown

Spec = Any
"""A test of one value; ``[spec]`` for a list; ``{key: spec}`` for an object: keys that end in ``!`` must be there,
``*`` stands for all others. What is ``null`` counts as absent. :data:`ANYTHING` fits always."""

LARGEST_BYTES = 256 << 20
"""Of a file that is parsed: a run over a million cases stays below."""
_LARGEST = 1e300
_LONGEST_TEXT = 200
_HALF_CHARACTER = b"\\ud"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def one_of(*texts: str) -> Spec:
    """The test that a value is one of these texts."""
    return (lambda value: isinstance(value, str) and value in texts), f"one of {', '.join(texts)}"


def number(low: float, high: float) -> Spec:
    """The test that a value is a number within limits, which belong to it."""
    return (lambda value: _number(value) and low <= value <= high), f"a number from {low:g} to {high:g}"


def whole(low: int, high: int = 2**53) -> Spec:
    """The test that a value is a whole number within limits, which belong to it."""
    limits = f"from {low} to {high}" if high < 2**53 else f"of at least {low}"
    return (lambda value: _whole(value) and low <= value <= high), f"a whole number {limits}"


def numbers(low: float = -_LARGEST, high: float = _LARGEST) -> Spec:
    """The test that a value is a list of numbers within limits; quicker than one test for each."""
    limits = "" if high == _LARGEST else f" from {low:g} to {high:g}"
    return (
        lambda value: isinstance(value, list) and all(_number(part) and low <= part <= high for part in value)
    ), f"a list of numbers{limits}"


def wholes(low: int, high: int = 2**53) -> Spec:
    """The test that a value is a list of whole numbers within limits."""
    return (
        lambda value: isinstance(value, list) and all(_whole(part) and low <= part <= high for part in value)
    ), f"a list of whole numbers of at least {low}"


def either(*specs: Spec) -> Spec:
    """The test that a value fits one of several forms."""
    expected = " or ".join(spec[1] if isinstance(spec, tuple) else "another form" for spec in specs)
    return (lambda value: any(not misfit(value, spec) for spec in specs)), expected


def numbered(spec: Spec) -> Spec:
    """The test that a value is an object whose keys are whole numbers, written as texts, and whose values fit."""
    return (
        lambda value: isinstance(value, Mapping) and all(map(_is_index, value)) and not misfit(value, {"*": spec})
    ), "an object by whole numbers"


def _whole(value: object) -> bool:
    return isinstance(value, int) and _number(value)


def _is_index(key: object) -> bool:
    text = str(key).strip()
    return text.isascii() and text.isdigit() and len(text) < 10


ANYTHING = (lambda value: True), "anything"  # noqa: ARG005
TEXT, FLAG, NUMBER = (_is(str), "a text"), (_is(bool), "true or false"), (_number, "a number")
WHOLE = _whole, "a whole number"
FILE_NAME = (
    (lambda value: isinstance(value, str) and value not in {"", ".", ".."} and not {"/", "\0"} & {*value}),
    "a file's name without a folder",
)
PLACE = (lambda value: isinstance(value, list) and len(value) == 3 and all(map(_number, value))), "three numbers"


# --- comparing ------------------------------------------------------------------------------------------------------


def misfit(value: object, spec: Spec, where: str = "") -> str:
    """The first part of a JSON value that is not as expected, in words; empty if all of it fits."""
    return next(_misfits(value, spec, where), "")


def _misfits(value: object, spec: Spec, where: str) -> Iterator[str]:
    if isinstance(spec, list):
        if not isinstance(value, list):
            yield _misfit(where, "a list", value)
            return
        for index, part in enumerate(value):
            yield from _misfits(part, spec[0], f"{where}[{index}]")
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
                yield from _misfits(part, inner, f"{where}.{other}"[-_LONGEST_TEXT:].lstrip("."))
        elif value.get(name) is not None:
            yield from _misfits(value[name], inner, f"{where}.{name}".lstrip("."))
        elif key.endswith("!"):
            yield f"{where or 'it'} has no {name}"


def without_nulls(value: Any, spec: Spec) -> Any:
    """The value without what is ``null`` in the parts that a spec names, so that it is absent there."""
    if not isinstance(spec, Mapping) or not isinstance(value, Mapping):
        return value
    inner = {key.removesuffix("!"): part for key, part in spec.items()}
    rest = inner.get("*", ANYTHING)
    return {key: without_nulls(part, inner.get(key, rest)) for key, part in value.items() if part is not None}


def _misfit(where: str, expected: str, value: object) -> str:
    found = f"a {type(value).__name__}"
    if isinstance(value, float) or (_whole(value) and "number" in expected):
        found = f"{value:.12g}"
    elif isinstance(value, list) and "list of" in expected:
        odd = [part for part in value if not _number(part)]
        found = f"a list with a {type(odd[0]).__name__}" if odd else "a list with others"
    return f"{where or 'it'} is {found}, expected {expected}"


# --- reading --------------------------------------------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """What a JSON text in UTF-8 says, with or without a byte order mark.

    Raises
    ------
    ValueError
        If it is something else, a key stands twice in an object (Python would drop one), a number is not finite, or it
        is nested too deeply. Escapes of bytes that are no text (``\\udcff``) are those of file names and pass.
    """
    try:
        content = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=unique_keys, parse_constant=_finite, parse_float=_finite
        )
        if _HALF_CHARACTER in data.lower():  # half of a character is no text
            json.dumps(content, ensure_ascii=False).encode(errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a character") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, for ``object_pairs_hook``; a ValueError if a key stands twice (JSON drops one)."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:_LONGEST_TEXT]!r} stands twice in one object; keep one")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that JSON has")
    return value


def read_json(
    path: str | os.PathLike[str],
    spec: Spec,
    remedy: str,
    error: type[MedsegError] = UsageError,
    most_bytes: int = LARGEST_BYTES,
) -> Any:
    """What a JSON file says, if it has the expected form.

    ``spec``: its form, see :data:`Spec`. ``remedy``: what to do if it has another one, for the message. ``error``:
    raised if it cannot be read, is no JSON (:func:`parse_json`), or does not fit.
    """
    try:
        content = parse_json(read_bounded(path, most_bytes))
    except OSError as why:
        raise error(f"cannot read {shown(path)}: {why.strerror or why}; {remedy}") from why
    except ValueError as why:
        raise error(f"{shown(path)} is not JSON: {why}; {remedy}") from why
    if wrong := misfit(content, spec):
        raise error(f"{shown(path)}: {wrong}; {remedy}")
    return content
