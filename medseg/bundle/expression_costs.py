"""What an expression in a config costs at most, from its syntax tree alone.

The tree is walked once with upper bounds in the place of values (an abstract interpretation). Everything that is made
or gone through is charged, times the loops around it; an expression that comes beyond the budget of its config is
refused before anything is evaluated.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from medseg.bundle.allowlist import ROOTS
from medseg.bundle.cost_bounds import (
    FLAG,
    UNKNOWN,
    Bound,
    Call,
    TooCostlyError,
    array,
    items,
    join,
    number,
    power,
    text,
)
from medseg.bundle.cost_calls import FUNCTIONS, METHODS, other

MOST_OPERATIONS = 5e6
"""What the expressions of one config may take and hold together: about a second, and less than 300 MB. The model zoo's
dearest config is counted as a fifth of it."""
_MOST_GROWTH = 1e7
"""How often values that come from an image or a folder may become larger, over all expressions of a config."""
_MOST_STEPS = 20_000
_PLAIN_FACTOR = 1e5
_LARGEST_INDEX = 10_000.0
_DIGITS = re.compile(r"\d+")
_REFERENCE = re.compile(r"@\w*(?:::\w*)*")

_Names = Mapping[str, Bound]


@dataclass(frozen=True, eq=False)
class Function:
    """What may be called: a lambda with the names that it sees, a method of ``receiver``, or a function of that name.

    ``names`` of the last are the arguments that it has been given before.
    """

    name: str = ""
    node: ast.Lambda | None = None
    names: _Names = field(default_factory=dict)
    receiver: Bound | None = None


class ExpressionMeter:
    """Judges the expressions of one config, which share one budget.

    ``look_up`` gives the bound of what stands at an id, ``imports`` the modules behind names; ``check`` is told every
    call by its dotted name and the bounds of its named arguments, and may refuse it.
    """

    def __init__(
        self,
        look_up: Callable[[str], Bound],
        imports: Mapping[str, str],
        check: Callable[[str, Mapping[str, Bound]], None],
    ) -> None:
        self._look_up, self._modules, self._check = look_up, {**ROOTS, **imports}, check
        self._spent, self._growth, self._steps, self._times, self._lambdas = 0.0, 1.0, 0, 1.0, 0
        self._known: dict[str, Function] = {}

    def measure(self, expression: str) -> Bound:
        """The bound of an expression (absolute ids, without its ``$``), whose cost is charged.

        Raises ``TooCostlyError`` beyond the budget. What the audit refuses as no plain expression has no cost.
        """
        for item in sorted(set(_REFERENCE.findall(expression)), key=len, reverse=True):
            expression = expression.replace(item, f"__local_refs['{item[1:]}']")
        try:
            tree = ast.parse(expression.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError):
            return UNKNOWN
        times, self._times = self._times, 1.0
        try:
            return self._visit(tree.body, {})
        finally:
            self._times = times

    def spend(self, amount: float, what: ast.AST | str) -> None:
        """Charge operations, as often as the loops around are run."""
        self._spent += self._times * max(1.0, amount)
        if not self._spent <= MOST_OPERATIONS:
            raise TooCostlyError(
                f"{_shown(what)} takes {_rounded(self._spent)} operations or elements (with what stands before it in"
                f" this config), expected at most {MOST_OPERATIONS:.0f}"
            )

    def grow(self, factor: float, what: ast.AST | str) -> None:
        """Note the growth of a value whose size nobody knows beforehand."""
        self._growth *= power(max(1.0, factor), self._times)
        if not self._growth <= _MOST_GROWTH:
            raise TooCostlyError(
                f"{_shown(what)} makes what it is given {_rounded(self._growth)} times as large (with what stands"
                f" before it in this config), expected at most {_MOST_GROWTH:.0f} times"
            )

    def call(self, name: str, given: Sequence[Bound], named: Mapping[str, Bound], what: ast.AST | str = "") -> Bound:
        """What a function, or a class, of this dotted name gives."""
        self._check(name, {**{str(place): bound for place, bound in enumerate(given)}, **named})
        return FUNCTIONS.get(name, other)(Call(self, what or name, None, given, named))

    def apply(self, function: Bound, given: Sequence[Bound], times: float) -> Bound:
        """What a function gives that is called so many times."""
        with self._repeated(times):
            if not function.functions:
                return other(Call(self, "a call", None, given, {}))
            return join([self._applied(known, given) for known in function.functions])

    def _applied(self, function: Function, given: Sequence[Bound]) -> Bound:
        if function.node is not None:
            names = dict(function.names)
            names |= dict(zip([argument.arg for argument in function.node.args.args], given, strict=False))
            return self._visit(function.node.body, names)
        if function.receiver is not None:
            return METHODS.get(function.name, other)(Call(self, function.name, function.receiver, given, {}))
        return self.call(function.name, given, dict(function.names))

    @contextmanager
    def _repeated(self, times: float) -> Iterator[None]:
        before = self._times
        self._times *= times
        try:
            yield
        finally:
            self._times = before

    def _visit(self, node: ast.AST, names: _Names) -> Bound:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise TooCostlyError(f"judging it takes more than {_MOST_STEPS} steps")
        rule = getattr(self, f"_{type(node).__name__.lower()}", None)
        if rule is None:
            return UNKNOWN
        self.spend(1.0, node)
        found: Bound = rule(node, names)
        return found

    def _constant(self, node: ast.Constant, _: _Names) -> Bound:
        if isinstance(node.value, str):
            return text(len(node.value))
        if isinstance(node.value, float):
            return number(abs(node.value), "real", abs(node.value))
        return number(_magnitude(node.value), least=_magnitude(node.value)) if isinstance(node.value, int) else FLAG

    def _name(self, node: ast.Name, names: _Names) -> Bound:
        return names[node.id] if node.id in names else self._named(self._modules.get(node.id, node.id))

    def _named(self, path: str) -> Bound:
        """A function or a constant of a module, which is handed on."""
        if path.endswith((".inf", ".nan")):
            return number(math.inf, "real")
        return replace(UNKNOWN, functions=(self._known.setdefault(path, Function(path)),))

    def _list(self, node: ast.List | ast.Tuple | ast.Set, names: _Names) -> Bound:
        parts = [self._visit(part, names) for part in node.elts]
        starred = [part.count for part, given in zip(parts, node.elts, strict=True) if isinstance(given, ast.Starred)]
        self.spend(sum(starred), node)
        held = [b.each if isinstance(g, ast.Starred) else b for b, g in zip(parts, node.elts, strict=True)]
        product = None if starred else math.prod(max(1.0, part.number) for part in parts)
        return items(len(parts) - len(starred) + sum(starred), join(held), product)

    _tuple = _set = _list

    def _starred(self, node: ast.Starred, names: _Names) -> Bound:
        return self._visit(node.value, names)

    def _dict(self, node: ast.Dict, names: _Names) -> Bound:
        keys = [self._visit(key, names) for key in node.keys if key is not None]
        values = [self._visit(value, names) for value in node.values]
        merged = sum(v.count for k, v in zip(node.keys, values, strict=True) if k is None)
        self.spend(merged, node)
        return items(len(keys) + merged, join([*keys, *values]))

    def _binop(self, node: ast.BinOp, names: _Names) -> Bound:
        left, right = self._visit(node.left, names), self._visit(node.right, names)
        what = node
        if isinstance(node.op, ast.Mult):
            return self._multiplied(left, right, what)
        if isinstance(node.op, ast.Pow):
            exponent = right.number if right.kind in {"number", "real"} else 16.0
            return self._combined(left, right, power(max(1.0, left.number), exponent), what)
        if isinstance(node.op, ast.Div | ast.FloorDiv):
            least = right.least or (1.0 if right.kind == "number" else 0.0)
            return self._combined(left, right, left.number / least if least else math.inf, what, real=True)
        if isinstance(node.op, ast.Add) and not {left.kind, right.kind} & {"number", "real", "array"}:
            if self._lambdas and "unknown" in {left.kind, right.kind} and _same_size(left, right):
                self.grow(2.0, what)
            each = join([left.each, right.each])
            product = None if left.product is None or right.product is None else left.product * right.product
            largest, count = max(left.number, right.number), left.count + right.count
            made = Bound(left.kind, largest, count, each, product=product)
            self.spend(made.count, what)
            return made
        return self._combined(left, right, left.number + right.number, what)

    def _combined(self, left: Bound, right: Bound, largest: float, what: ast.AST, *, real: bool = False) -> Bound:
        """Of two numbers, or entry by entry."""
        kinds = {left.kind, right.kind}
        if kinds <= {"number", "real"}:
            return number(largest, "real" if real or "real" in kinds else "number")
        made = array(left.count * right.count, largest) if "array" in kinds else Bound("unknown", largest)
        self.spend(made.weight, what)
        return made

    def _multiplied(self, left: Bound, right: Bound, what: ast.AST) -> Bound:
        sequence = {"text", "items"}
        held, times = (right, left) if left.kind == "number" or right.kind in sequence else (left, right)
        if held.kind in sequence and times.kind not in {*sequence, "real"}:  # a number, also one in an array
            made = replace(held, count=held.count * times.number, product=None)
            self.spend(made.count, what)
            return made
        if times.kind == "number" and held.kind == "unknown":  # a longer list, or an image with larger values
            self.grow(times.number, what)
            self.spend(held.count * times.number if times.number > _PLAIN_FACTOR else held.count, what)
            return replace(held, number=held.number * times.number, product=None)
        return self._combined(left, right, left.number * right.number, what)

    def _unaryop(self, node: ast.UnaryOp, names: _Names) -> Bound:
        found = self._visit(node.operand, names)
        return FLAG if isinstance(node.op, ast.Not) else found

    def _boolop(self, node: ast.BoolOp, names: _Names) -> Bound:
        return join([self._visit(part, names) for part in node.values])

    def _ifexp(self, node: ast.IfExp, names: _Names) -> Bound:
        self._visit(node.test, names)
        return join([self._visit(node.body, names), self._visit(node.orelse, names)])

    def _compare(self, node: ast.Compare, names: _Names) -> Bound:
        parts = [self._visit(part, names) for part in [node.left, *node.comparators]]
        if any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops):
            self.spend(max(part.count for part in parts[1:]), node)
        arrays = [part for part in parts if part.kind == "array"]
        if arrays:
            self.spend(sum(part.weight for part in arrays), node)
            return array(max(part.count for part in arrays), 1.0)
        return FLAG

    def _subscript(self, node: ast.Subscript, names: _Names) -> Bound:
        if isinstance(node.value, ast.Name) and node.value.id == "__local_refs":
            return self._look_up(str(node.slice.value)) if isinstance(node.slice, ast.Constant) else UNKNOWN
        held = self._visit(node.value, names)
        self._visit(node.slice, names)
        if not isinstance(node.slice, ast.Slice):
            return held if held.kind == "array" else held.each
        upper = node.slice.upper
        ends = isinstance(upper, ast.Constant) and isinstance(upper.value, int) and upper.value >= 0
        count = min(held.count, float(upper.value)) if ends else held.count  # type: ignore[union-attr]
        self.spend(count, node)
        return replace(held, count=count, product=None)

    def _slice(self, node: ast.Slice, names: _Names) -> Bound:
        return join([self._visit(part, names) for part in (node.lower, node.upper, node.step) if part is not None])

    def _attribute(self, node: ast.Attribute, names: _Names) -> Bound:
        path = self._dotted(node, names)
        if path is not None:
            return self._named(path)
        held = self._visit(node.value, names)
        if node.attr == "shape":
            return items(
                8.0, number(min(max(held.count, UNKNOWN.number), _LARGEST_INDEX)), product=max(held.count, 1.0)
            )
        found = join([UNKNOWN, held])
        return replace(found, functions=(Function(node.attr, receiver=held),)) if node.attr in METHODS else found

    def _dotted(self, node: ast.AST, names: _Names) -> str | None:
        """The dotted name of something in a module, or of a function of Python's; None for what is computed."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in names or (parts and node.id not in self._modules):
            return None
        return ".".join([self._modules.get(node.id, node.id), *reversed(parts)])

    def _call(self, node: ast.Call, names: _Names) -> Bound:
        what = node
        given = [self._visit(argument, names) for argument in node.args]
        self.spend(sum(b.count for b, a in zip(given, node.args, strict=True) if isinstance(a, ast.Starred)), what)
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            spread = join([b.each if isinstance(a, ast.Starred) else b for b, a in zip(given, node.args, strict=True)])
            given = [spread] * 4
        named = {word.arg or "**": self._visit(word.value, names) for word in node.keywords}
        path = self._dotted(node.func, names)
        if path is not None:
            return self.call(path, given, named, what)
        if isinstance(node.func, ast.Attribute):
            receiver = self._visit(node.func.value, names)
            return METHODS.get(node.func.attr, other)(Call(self, what, receiver, given, named))
        return self.apply(self._visit(node.func, names), given, 1.0)

    def _joinedstr(self, node: ast.JoinedStr, names: _Names) -> Bound:
        length = 0.0
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = ast.unparse(part.format_spec) if part.format_spec is not None else ""
                length += 32.0 * self._visit(part.value, names).weight
                length += sum(float(digits) for digits in _DIGITS.findall(spec))
            else:
                length += self._visit(part, names).count
        self.spend(length, node)
        return text(length)

    def _lambda(self, node: ast.Lambda, names: _Names) -> Bound:
        inner = {**names, **{argument.arg: UNKNOWN for argument in node.args.args}}
        self._lambdas += 1
        with self._repeated(1.0 / self._times):  # once here; a call that is seen charges for itself
            self._visit(node.body, inner)
        self._lambdas -= 1
        return replace(UNKNOWN, functions=(Function(node=node, names=dict(names)),))

    def _comprehension(self, node: ast.AST, names: _Names) -> Bound:
        before, count, inner = self._times, 1.0, dict(names)
        for generator in node.generators:  # type: ignore[attr-defined]
            given = self._visit(generator.iter, inner)
            self._times *= max(1.0, given.count)
            count *= given.count
            self.spend(1.0, node)
            inner |= _bound_names(generator.target, given.each)
            for condition in generator.ifs:
                self._visit(condition, inner)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]  # type: ignore[attr-defined]
        held = [self._visit(part, inner) for part in parts]
        self._times = before
        return items(count, join(held))

    _listcomp = _setcomp = _generatorexp = _dictcomp = _comprehension


def _bound_names(target: ast.AST, each: Bound) -> dict[str, Bound]:
    """Names that a loop binds to what it is given."""
    if isinstance(target, ast.Name):
        return {target.id: each}
    found: dict[str, Bound] = {}
    for part in target.elts if isinstance(target, ast.Tuple | ast.List) else ():
        found |= _bound_names(part, each.each if each.kind == "items" else each)
    return found


def _same_size(left: Bound, right: Bound) -> bool:
    return min(left.count, right.count) >= UNKNOWN.count


def _magnitude(value: int) -> float:
    try:
        return abs(float(value))
    except OverflowError:
        return math.inf


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value < 1e12 else f"{value:.1e}" if value < math.inf else "endlessly many"


def _shown(code: ast.AST | str) -> str:
    what = code if isinstance(code, str) else ast.unparse(code)
    return what if len(what) <= 80 else f"{what[:79]}…"
