"""What ids and expressions of a bundle's configs come to, as far as their text tells: texts, lists of texts, unknown.

Nothing is evaluated. Configs may be laid over each other in any order, so what an id comes to is all that any of them
says; what the user gave on the command line stands for itself.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from medseg.bundle.config import ABSENT, SEPARATOR, absolute_text, item_at, place_of

OUTPUT, BUNDLE, DATA, USER = "\ue000\ue001\ue002\ue003"
"""What a text begins with that lies below one of the folders, or holds where the user gave a part of it."""
ROOTS = {"output_dir": OUTPUT, "bundle_root": BUNDLE, "dataset_dir": DATA}

_REFERENCE = re.compile(rf"@\w*(?:{SEPARATOR}\w*)*")
_WHOLE = re.compile(rf"[@%](\w+(?:{SEPARATOR}\w+)*)")
_JOIN = frozenset({"os.path.join"})
_SAME = frozenset({"os.path.abspath", "os.path.normpath", "os.path.realpath"})
_WIDTH = re.compile(r"0?[0-9]{0,2}d?", re.ASCII)
"""Formats of a number that keep it one: no filling, and no letter in its place."""
_LISTINGS = frozenset({"glob.glob", "glob.iglob", "os.listdir"})
_PATH_TEXTS = frozenset(
    f"os.path.{name}" for name in ("join", "basename", "dirname", "abspath", "normpath", "realpath", "relpath")
)
_TEXT_METHODS = frozenset(
    {"replace", "strip", "lstrip", "rstrip", "lower", "upper", "join", "zfill", "removesuffix", "removeprefix"}
)
_DATE = re.compile(r"%[YymdjHMSfpabAB]")
"""Directives of a date that come to digits or names; others come to a slash, or to nothing, so that two dots meet."""
_MOST_TEXTS, _LONGEST, _DEEPEST = 16, 2000, 20


class Texts:
    """What ids come to in configs that may be laid over each other.

    ``configs``: Parsed configs. ``given``: Ids whose values the user gave.
    """

    def __init__(self, configs: Iterable[Any] = (), given: Collection[str] = ()) -> None:
        self.configs = [config for config in configs if isinstance(config, Mapping)]
        self.given = frozenset(SEPARATOR.join(place_of([name])) for name in given)
        self._overlays = [
            (key.startswith("+"), SEPARATOR.join(place_of([key])), value)
            for config in self.configs
            for key, value in config.items()
            if key.startswith("+") or "#" in key or SEPARATOR in key
        ]
        self._known: dict[str, frozenset[str] | None] = {}

    def is_given(self, place: str) -> bool:
        """Whether the user gave what stands at an id."""
        return any(place == name or place.startswith(name + SEPARATOR) for name in self.given)

    def items(self, place: str, depth: int = 0) -> list[Any]:
        """What stands at an id in any of the configs, plain references and macros on the way followed."""
        found = [value for config in self.configs if (value := item_at(config, place)) is not ABSENT]
        for extends, name, value in self._overlays:
            if place == name:
                found.append(value)
            elif place.startswith(name + SEPARATOR):
                below = item_at(value, place[len(name + SEPARATOR) :])
                # items of a list that extends another one have numbers that depend on that one
                found += [value] if extends and isinstance(value, list) else [] if below is ABSENT else [below]
        above, _, last = place.rpartition(SEPARATOR)
        if not found and above and depth < _DEEPEST:
            for value in self.items(above, depth + 1):
                if isinstance(value, str) and value.startswith("%"):
                    target = absolute_text(value, above.split(SEPARATOR))[1:]
                    found += self.items(f"{target}{SEPARATOR}{last}", depth + 1)
                elif (below := item_at(value, last)) is not ABSENT:  # of what a macro further up copies
                    found.append(below)
        return found

    def of_value(self, value: Any, path: tuple[str, ...], depth: int = 0) -> frozenset[str] | None:
        """All texts that a value of a config may come to; None if that cannot be told."""
        if value is None or value is False:
            return frozenset()
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        text = absolute_text(str(value), path)
        if text.startswith("$"):
            return self.of_node(parse_references(text[1:]), {}, depth)
        if (place := whole_reference(text)) is not None:
            return self._at(place, depth)
        return frozenset({text}) if len(text) <= _LONGEST else None

    def _at(self, place: str, depth: int) -> frozenset[str] | None:
        if place in ROOTS:
            return frozenset({ROOTS[place]})
        if self.is_given(place):
            return frozenset({USER})
        if depth > _DEEPEST:
            return None
        if place not in self._known:
            values = self.items(place)
            found = [self.of_value(value, tuple(place.split(SEPARATOR)), depth + 1) for value in values]
            # nothing there: MONAI evaluates nothing then, unless the user gives the id
            self._known[place] = _union(found) if found else frozenset({USER})
        return self._known[place]

    def of_node(  # noqa: C901, PLR0911  one line per kind of syntax
        self, node: ast.AST | None, roots: Mapping[str, str], depth: int
    ) -> frozenset[str] | None:
        """All texts that an expression may come to."""
        if isinstance(node, ast.Expression):
            return self.of_node(node.body, roots, depth)
        if (place := reference_of(node)) is not None:
            return self._at(place, depth)
        if depth > _DEEPEST:
            return None
        parts: list[ast.AST]
        match node:
            case ast.Constant(value=value):
                return self.of_value(value, ()) if str(value)[:1] not in "$@%" else frozenset({str(value)})
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                parts = [left, right]
            case ast.JoinedStr(values=values):
                parts = list(values)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=spec):
                found = self.of_node(value, roots, depth + 1)
                return found if spec is None or (_is_width(spec) and _are_numbers(found)) else None
            case ast.IfExp(body=body, orelse=orelse):
                return _union([self.of_node(body, roots, depth + 1), self.of_node(orelse, roots, depth + 1)])
            case ast.Call(func=ast.Attribute(attr="strftime"), args=[layout], keywords=[]):  # a date in it is digits
                dated = _product([self.of_node(layout, roots, depth + 1)], lambda texts: _DATE.sub("0", texts[0]))
                return None if any("%" in text for text in dated or ()) else dated
            case ast.Call(func=func, args=args, keywords=[]):
                return self._of_call(called(func, roots), [self.of_node(a, roots, depth + 1) for a in args])
            case _:
                return None
        return _product([self.of_node(part, roots, depth + 1) for part in parts], "".join)

    @staticmethod
    def _of_call(name: str | None, arguments: list[frozenset[str] | None]) -> frozenset[str] | None:
        if name in _JOIN and arguments:
            return _product(arguments, _joined)
        return arguments[0] if len(arguments) == 1 and (name == "str" or name in _SAME) else None

    def is_text(self, place: str) -> bool:
        """Whether an id is a text, or a number, in every config."""
        return self._at(place, 0) is not None

    def are_texts(self, place: str, roots: Mapping[str, str], depth: int = 0) -> bool:
        """Whether an id is a list of texts in every config."""
        values = self.items(place)
        return depth < _DEEPEST and bool(values) and all(self._listed(value, roots, depth) for value in values)

    def _listed(self, value: Any, roots: Mapping[str, str], depth: int) -> bool:
        if isinstance(value, list):
            return all(isinstance(item, str) and item[:1] not in "$@%" for item in value)
        if not isinstance(value, str) or not value.startswith("$"):
            return False
        tree = parse_references(value[1:].replace("#", SEPARATOR))
        return isinstance(tree, ast.Expression) and self.lists_texts(tree.body, roots, frozenset(), depth + 1)

    def lists_texts(  # noqa: PLR0911  one line per kind of syntax
        self, node: ast.AST, roots: Mapping[str, str], local: frozenset[str], depth: int = 0
    ) -> bool:
        """Whether an expression is sure to give texts one by one."""
        if (place := reference_of(node)) is not None:
            return self.are_texts(place, roots, depth)
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return all(self.is_textual(item, roots, local) for item in items)
            case ast.Call(func=func, args=[first, *_]):
                name = called(func, roots)
                inner = name in {"sorted", "list", "tuple", "set", "reversed"}
                return name in _LISTINGS or (inner and self.lists_texts(first, roots, local, depth))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return all(self.lists_texts(part, roots, local, depth) for part in (left, right))
            case ast.Subscript(value=value, slice=ast.Slice()):
                return self.lists_texts(value, roots, local, depth)
            case ast.ListComp(elt=elt, generators=[one]) if isinstance(one.target, ast.Name):
                texts = self.lists_texts(one.iter, roots, local, depth)
                return self.is_textual(elt, roots, local | {text_name(one.target.id)} if texts else local)
        return False

    def is_textual(  # noqa: PLR0911  one line per kind of syntax
        self, node: ast.AST, roots: Mapping[str, str], local: frozenset[str]
    ) -> bool:
        """Whether an expression is sure to be a text; ``local`` holds :func:`text_name` of names that are."""
        if (place := reference_of(node)) is not None:
            return self.is_text(place)
        match node:
            case ast.Constant(value=str()) | ast.JoinedStr():
                return True
            case ast.Name(id=name):
                return text_name(name) in local
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.is_textual(left, roots, local) or self.is_textual(right, roots, local)
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in _TEXT_METHODS:
                return self.is_textual(value, roots, local)
            case ast.Call(func=func):
                return called(func, roots) in _PATH_TEXTS | {"str"}
            case ast.Subscript(value=ast.Call(func=func), slice=ast.Constant()):
                return called(func, roots) == "os.path.splitext"
        return False


def whole_reference(text: str) -> str | None:
    """The id that an absolute text is a reference or a macro to, as a whole."""
    found = _WHOLE.fullmatch(text)
    return None if found is None else found[1]


def parse_references(text: str) -> ast.AST | None:
    """The syntax tree of an absolute expression with its references replaced as MONAI does; None if it is no Python."""
    for item in sorted(_REFERENCE.findall(text), key=len, reverse=True):  # the longest first
        text = text.replace(item, f"__local_refs['{item[1:]}']")
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def reference_of(node: ast.AST | None) -> str | None:
    """The id that a node refers to, if it is a reference."""
    match node:
        case ast.Subscript(value=ast.Name(id="__local_refs"), slice=ast.Constant(value=str() as place)):
            return place
    return None


def called(node: ast.AST, roots: Mapping[str, str]) -> str | None:
    """The dotted name of what is called."""
    name = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    first, dot, rest = name.partition(".")
    return f"{roots.get(first, first)}{dot}{rest}" if name else None


def text_name(name: str) -> str:
    """How a set of local names says that one is bound to texts."""
    return f"{name} is a text"


def _is_width(spec: ast.expr) -> bool:
    """Whether the format of a part of an f-string is a plain width."""
    match spec:
        case ast.JoinedStr(values=[ast.Constant(value=str() as text)]):
            return _WIDTH.fullmatch(text) is not None
    return False


def _are_numbers(texts: frozenset[str] | None) -> bool:
    return texts is not None and all(text.strip(USER).isdecimal() for text in texts)


def _union(found: list[frozenset[str] | None]) -> frozenset[str] | None:
    if any(texts is None for texts in found):
        return None
    together = frozenset[str]().union(*(texts for texts in found if texts is not None))
    return together if len(together) <= _MOST_TEXTS else None


def _product(found: list[frozenset[str] | None], join: Callable[[tuple[str, ...]], str]) -> frozenset[str] | None:
    made: list[tuple[str, ...]] = [()]
    for texts in found:
        if texts is None:
            return None
        made = [(*before, text) for before in made for text in sorted(texts)]
        if len(made) > _MOST_TEXTS:
            return None
    joined = frozenset(join(parts) for parts in made)
    return joined if all(len(text) <= _LONGEST for text in joined) else None


def _joined(parts: Collection[str]) -> str:
    """``os.path.join``, for which a folder of its own begins anew."""
    result = ""
    for part in parts:
        result = part if part[:1] in ROOTS.values() and part else posixpath.join(result, part)
    return result
