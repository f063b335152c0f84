"""Upper bounds of values that nobody has computed, and of the arguments of a call.

A :class:`Bound` says how large numbers in a value may be and how many elements it may have; :data:`UNKNOWN` is what is
assumed of everything that comes from an image, a folder or a network.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

_NUMBER, _COUNT = 256.0, 64.0
"""What is assumed of numbers and lengths that come from an image, a folder or a network."""
_ENTRY = 0.1
"""What an entry of an array, or a letter, costs in comparison with an operation of the interpreter."""
_LARGEST_WHOLE = 1e300
_MOST_FUNCTIONS = 32


class TooCostlyError(ValueError):
    """A value, or the way to it, may cost more than a config is worth."""


@dataclass(frozen=True)
class Bound:
    """What a value may be at most.

    ``kind`` is ``number`` (whole), ``real``, ``text``, ``items`` (anything that is iterated), ``array`` or
    ``unknown``. ``number`` bounds the magnitude of numbers in it, ``least`` is a number that they do not fall below
    (0: not known); ``count`` bounds its elements (items, letters, entries); ``item`` holds for each item; ``product``
    is that of its numbers, as a shape; ``functions`` are what it may be called as.
    """

    kind: str = "unknown"
    number: float = _NUMBER
    count: float = _COUNT
    item: Bound | None = None
    least: float = 0.0
    product: float | None = None
    functions: tuple[Any, ...] = ()

    @property
    def weight(self) -> float:
        """Elements with those of its items, at all depths, in operations."""
        if self.kind in {"array", "text"}:
            return 1.0 + self.count * _ENTRY
        if self.kind != "items":
            return 1.0
        return self.count * (1.0 if self.item is None else 1.0 + self.item.weight)

    @property
    def extent(self) -> float:
        """The number of entries of an array of which this is the shape, or one of its axes."""
        if self.kind in {"number", "real"}:
            return max(1.0, self.number)
        if self.product is not None:
            return self.product
        return power(max(1.0, self.each.number), self.count)

    @property
    def each(self) -> Bound:
        """What holds for each item."""
        if self.item is not None:
            return self.item
        if self.kind == "text":
            return replace(self, count=1.0)
        return Bound("number" if self.kind == "array" else "unknown", self.number)


UNKNOWN = Bound()
FLAG = Bound("number", 1.0, 1.0)


def number(value: float, kind: str = "number", least: float = 0.0) -> Bound:
    """The bound of a number; whole ones beyond what anybody counts are refused."""
    if kind == "number" and not value <= _LARGEST_WHOLE:
        raise TooCostlyError("a whole number of more than 300 digits")
    return Bound(kind, value, 1.0, least=least)


def text(count: float) -> Bound:
    """The bound of a text."""
    return Bound("text", 1.0, count)


def items(count: float, item: Bound | None = None, product: float | None = None) -> Bound:
    """The bound of what is iterated."""
    held = UNKNOWN if item is None else item
    return Bound("items", held.number, count, held, product=product)


def array(count: float, largest: float = _NUMBER) -> Bound:
    """The bound of an array or a tensor."""
    return Bound("array", largest, max(1.0, count))


def join(bounds: Sequence[Bound]) -> Bound:
    """What holds for any of several values."""
    if len(bounds) == 1:
        return bounds[0]
    if not bounds:
        return FLAG
    inner = [bound.item for bound in bounds if bound.item is not None]
    products = [bound.product for bound in bounds if bound.product is not None]
    kinds = {bound.kind for bound in bounds}
    functions = tuple(dict.fromkeys(function for bound in bounds for function in bound.functions))
    if len(functions) > _MOST_FUNCTIONS:
        raise TooCostlyError(f"more than {_MOST_FUNCTIONS} functions at one place")
    return Bound(
        kinds.pop() if len(kinds) == 1 else "real" if kinds == {"number", "real"} else "unknown",
        max(bound.number for bound in bounds),
        max(bound.count for bound in bounds),
        join(inner) if inner else None,
        min(bound.least for bound in bounds),
        max(products) if len(products) == len(bounds) else None,
        functions,
    )


def power(base: float, exponent: float) -> float:
    """A power that ends in infinity instead of an error."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


class Meter(Protocol):
    """Who is charged for a call."""

    def spend(self, amount: float, what: ast.AST | str) -> None:
        """Charge operations; raises :class:`TooCostlyError` beyond the budget."""

    def grow(self, factor: float, what: ast.AST | str) -> None:
        """Note that a value of unknown size grows by a factor, each time that this is run."""

    def apply(self, function: Bound, given: Sequence[Bound], times: float) -> Bound:
        """What a function gives that is called so many times."""


@dataclass(frozen=True)
class Call:
    """A call: ``receiver`` is the object of a method, or None; ``args`` and ``named`` the bounds of its arguments."""

    meter: Meter
    what: ast.AST | str
    receiver: Bound | None
    args: Sequence[Bound]
    named: Mapping[str, Bound]

    @property
    def given(self) -> list[Bound]:
        """All bounds, the receiver first."""
        return [*([] if self.receiver is None else [self.receiver]), *self.args, *self.named.values()]

    def get(self, place: int, name: str = "", default: Bound = FLAG) -> Bound:
        """An argument by its place or its name."""
        return self.named[name] if name in self.named else self.args[place] if len(self.args) > place else default

    def made(self, bound: Bound) -> Bound:
        """A result that is really there: its elements are charged."""
        self.meter.spend(bound.weight, self.what)
        return bound

    def read(self) -> float:
        """Charge for going through all that is given; the number of elements of the longest."""
        longest = max((bound.count for bound in self.given), default=1.0)
        self.meter.spend(longest, self.what)
        return longest
