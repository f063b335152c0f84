"""Judge the ``$`` expressions of a bundle by their syntax tree, without evaluating anything.

MONAI replaces ``@id`` by ``__local_refs['id']`` in the *text* of an expression and hands the result to ``eval``.
The same replacement is made here first, so that what is judged is what would run. Only listed kinds of syntax,
names, attributes and calls pass.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Mapping

from medseg.bundle.allowlist import (
    ATTRIBUTES,
    BUILTINS,
    IMPORTS,
    READERS_AND_WRITERS,
    ROOTS,
    SHIPPED,
    is_function,
    is_shipped,
    is_value,
)
from medseg.bundle.audit_calls import CALLS, is_conversion, is_rank, is_switch, judge_table, table_of
from medseg.bundle.audit_places import WRITERS, Places, Problem, by_keyword_only, kind_of, position_of, takes_a_place
from medseg.bundle.audit_texts import Texts, parse_references, reference_of, text_name

_LONGEST = 4000
_RELATIVE = re.compile(r"@(?:::)+")
_RESERVED = re.compile(r"__\w*__|(?<!\w)_(target|mode|requires|disabled|debug|desc|meta)_(?!\w)")
_LOCAL_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9_]*|_")

_JUDGED_ARGUMENTS = frozenset(
    {"reader", "writer", "merger_cls", "allow_pickle", "weights_only", "pickle_module", "_debug_", "compile_kwargs"}
    | {"pretrained_url"}
)
_CALL_WHAT_THEY_GET = frozenset({"map", "filter", "sorted", "max", "min"})
_COMPILATION = frozenset({"mode", "dynamic", "fullgraph"})

_PLAIN = (
    ast.Expression, ast.Load, ast.Starred, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Slice, ast.IfExp, ast.Compare,
    ast.BoolOp, ast.UnaryOp, ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd, ast.Invert, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr, ast.BitXor, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt,
    ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn,
)  # fmt: skip
"""Kinds of syntax that are fine whenever their parts are."""


def is_import(text: str) -> bool:
    """Whether MONAI would treat the expression (without its ``$``) as an import statement."""
    tree = _parse(text)
    return isinstance(tree, ast.Module) and bool(tree.body) and isinstance(tree.body[0], ast.Import | ast.ImportFrom)


def imported_names(text: str) -> dict[str, str]:
    """Name to dotted module (or member) that an import statement binds; empty if it is not one statement."""
    tree = _parse(text)
    if not isinstance(tree, ast.Module) or len(tree.body) != 1:
        return {}
    node = tree.body[0]
    if isinstance(node, ast.Import) and len(node.names) == 1:
        return {node.names[0].asname or node.names[0].name: node.names[0].name}
    if isinstance(node, ast.ImportFrom) and len(node.names) == 1 and node.module and not node.level:
        return {node.names[0].asname or node.names[0].name: f"{node.module}.{node.names[0].name}"}
    return {}


def judge_import(text: str) -> list[str]:
    """Reasons why an import statement is refused; empty if it is allowed."""
    bound = imported_names(text)
    if not bound:
        return [f"the import {text!r} is not one plain import of one name"]
    ((name, module),) = bound.items()
    if module in IMPORTS:
        if name != module and name not in IMPORTS[module]:
            return [f"{module} is imported under the name {name!r}, which is not one of its usual names"]
        return []
    if is_function(module) or is_value(module):
        return [] if name == module.rpartition(".")[2] else [f"{module} is imported under another name, {name!r}"]
    if is_shipped(module):
        return [f"it imports {module}, {SHIPPED}"]
    return [f"it imports {module}, which is not on the list of allowed modules"]


def judge_expression(
    text: str, imports: Mapping[str, str], places: Places | None = None, *, infers: bool = False
) -> list[str | Problem]:
    """Reasons why an expression is refused; empty if it is harmless.

    ``text``: The expression without its leading ``$``. ``imports``: Names bound by the bundle's import statements, to
    dotted modules. ``places``: What the arguments that name places come to. ``infers``: Whether it stands in a config
    for inference, where nothing writes.
    """
    if len(text) > _LONGEST:
        return [f"the expression is {len(text)} characters long, at most {_LONGEST} are read"]
    if unicodedata.normalize("NFKC", text) != text:
        return ["the expression holds letters that Python takes for others"]
    tree = parse_references(_RELATIVE.sub("@relative::", text.replace("#", "::")))
    if tree is None:
        return ["the expression is not valid Python"]
    judge = _Judge({**imports, **ROOTS}, places or Places(Texts()), infers=infers)
    try:
        judge.visit(tree, frozenset())
    except RecursionError:
        return ["the expression is nested too deeply"]
    return list(dict.fromkeys(judge.problems))


def judge_argument(name: str, value: object) -> str | None:
    """Why a keyword argument is refused, or None. Some arguments turn a harmless class into a loader of code."""
    if name in {"reader", "writer", "merger_cls"} and isinstance(value, str):
        short = value.removeprefix("monai.data.").removeprefix("monai.inferers.")
        if short not in READERS_AND_WRITERS:
            return f"{name} is {value!r}: MONAI imports and calls whatever this names"
    if name == "allow_pickle" and value is not False:
        return "allow_pickle lets a data file run code"
    if name == "weights_only" and value is not True:
        return "weights_only must be true, or a weights file can run code"
    if name in {"pickle_module", "_debug_"} or (name == "pretrained_url" and value is not None):
        return f"{name} must not be given"
    if name == "compile_kwargs" and value is not None:
        options = value.items() if isinstance(value, Mapping) else [("", value)]
        if not all(key in _COMPILATION and isinstance(part, str | bool | None) for key, part in options):
            return "compile_kwargs may only hold mode, dynamic and fullgraph: other options name programs"
    return None


def _parse(text: str) -> ast.AST | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class _Judge:
    """Walks one syntax tree and collects what is not allowed in it."""

    def __init__(self, roots: Mapping[str, str], places: Places, *, infers: bool) -> None:
        self.roots, self.places, self.infers = roots, places, infers
        self.problems: list[str | Problem] = []
        self.refuse = self.problems.append

    def visit(self, node: ast.AST, local: frozenset[str]) -> None:
        """Judge ``node``; ``local`` are the names bound by enclosing comprehensions and lambdas."""
        special = getattr(self, f"_{type(node).__name__.lower()}", None)
        if special is not None:
            special(node, local)
        elif isinstance(node, _PLAIN):
            self._children(node, local)
        else:
            self.refuse(f"{type(node).__name__} is not allowed in an expression")

    def _children(self, node: ast.AST, local: frozenset[str]) -> None:
        for child in ast.iter_child_nodes(node):
            self.visit(child, local)

    def _constant(self, node: ast.Constant, _: frozenset[str]) -> None:
        if isinstance(node.value, bytes | complex):
            self.refuse(f"a {type(node.value).__name__} constant is not allowed")
        if isinstance(node.value, str) and "__local_refs" in node.value:
            self.refuse("a reference inside a string changes the code around it")
        if isinstance(node.value, str) and _RESERVED.search(node.value):
            self.refuse(f"the string {node.value!r} names something internal")

    def _name(self, node: ast.Name, local: frozenset[str]) -> None:
        if node.id in local or (node.id not in self.roots and node.id in BUILTINS):
            return
        path = self.roots.get(node.id)
        if path is None or not (is_function(path) or is_value(path)):
            self.refuse(self._name_problem(node.id))
        elif takes_a_place(path):
            self.refuse(f"{path} is handed on; it imports, writes or reads whatever it is called with")

    def _attribute(self, node: ast.Attribute, local: frozenset[str]) -> None:
        path = self._dotted(node, local)
        if path is None:
            if self._column(node, local):
                return
            if node.attr not in ATTRIBUTES:
                self.refuse(f"the attribute .{node.attr} is not on the list of allowed attributes")
            elif node.attr == "replace" and not self.places.texts.is_textual(node.value, self.roots, local):
                # the method of a text is harmless, that of a module or a path moves files
                self.refuse(".replace of something that is not sure to be a text; use os.path.basename(…), str(…)")
            self.visit(node.value, local)
        elif not (is_function(path) or is_value(path)):
            self.refuse(f"{path} is not on the list of allowed functions and values")
        elif takes_a_place(path):
            self.refuse(f"{path} is handed on; it imports, writes or reads whatever it is called with")

    def _name_problem(self, name: str) -> str:
        """Why a name is refused; MONAI binds ``import a.b`` to the name ``a.b``, so that ``a`` stays unknown."""
        if name in self.roots:
            return f"the name {name!r} is not allowed here (it is {self.roots[name]})"
        if any(bound.startswith(f"{name}.") for bound in self.roots):
            return f"the name {name!r} is not bound: add '$import {name}' to the imports"
        return f"the name {name!r} is not allowed"

    def _dotted(self, node: ast.AST, local: frozenset[str]) -> str | None:
        """Full module path of ``a.b.c`` if ``a`` is a module, else None."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in local or node.id not in self.roots:
            return None
        return ".".join([self.roots[node.id], *reversed(parts)])

    def _column(self, node: ast.AST, local: frozenset[str]) -> bool:
        """Judge the reading of a table if ``node`` is a column of it."""
        table = table_of(node, lambda part: self._dotted(part, local))
        if table is not None:
            if problem := judge_table(table):
                self.refuse(problem)
            for part in (*table.args, *(keyword.value for keyword in table.keywords)):
                self.visit(part, local)
        return table is not None

    def _subscript(self, node: ast.Subscript, local: frozenset[str]) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "__local_refs":
            if not isinstance(node.slice, ast.Constant):
                self.refuse("__local_refs is not used by reference")
            return
        if (self._dotted(node.value, local) == "os.environ" and is_rank(node.slice)) or self._column(node, local):
            return
        self._children(node, local)

    def _call(self, node: ast.Call, local: frozenset[str]) -> None:
        path = self._dotted(node.func, local)
        for keyword in node.keywords:
            self._keyword_argument(keyword, local, (path or "").rpartition(".")[2])
        if path is None:
            self._callee_without_module(node, local)
        elif by_keyword_only(path) and is_function(path):
            self._taker(path, node)
        elif path in CALLS:
            if problem := CALLS[path](node):
                self.refuse(problem)
        elif not (position_of(path) and is_function(path)):
            self.visit(node.func, local)
        if path is not None:
            self._path_argument(path, node)
        if not is_switch(node, self.roots):
            for argument in node.args:
                self.visit(argument, local)

    def _taker(self, path: str, node: ast.Call) -> None:
        if node.args:
            self.refuse(f"{path} must be called with keyword arguments")
        if self.infers and path.rpartition(".")[2] in WRITERS:
            self.refuse(f"{path} writes, which a config for inference does not")

    def _path_argument(self, path: str, node: ast.Call) -> None:
        at, kind = position_of(path) or (0, None)
        if kind == "write" and self.infers:
            self.refuse(f"{path} writes, which a config for inference does not")
        elif kind is not None and any(isinstance(argument, ast.Starred) for argument in node.args):
            self.refuse(f"* hides the path that {path} is given")
        elif kind is not None and not at and not node.args and not any(kind_of(k.arg or "") for k in node.keywords):
            self.refuse(f"{path} must be given its path by position")
        elif kind is not None and len(node.args) > at:
            problem = self.places.path_problem("the path", kind, node.args[at], self.roots)
            if problem is not None:
                self.refuse(problem)

    def _keyword_argument(self, keyword: ast.keyword, local: frozenset[str], owner: str) -> None:
        if keyword.arg is None:
            self.refuse("** hides the arguments of a call")
        elif isinstance(keyword.value, ast.Constant):
            if problem := judge_argument(keyword.arg, keyword.value.value):
                self.refuse(problem)
        elif keyword.arg in _JUDGED_ARGUMENTS:
            self.refuse(f"{keyword.arg} must be a plain constant")
        if keyword.arg and (misplaced := self.places.problem_of_node(keyword.arg, keyword.value, self.roots, owner)):
            self.refuse(misplaced)
        self.visit(keyword.value, local)

    def _callee_without_module(self, node: ast.Call, local: frozenset[str]) -> None:
        function = node.func
        if is_switch(node, self.roots):
            return
        if isinstance(function, ast.Name):
            if function.id in local or function.id not in BUILTINS:
                self.refuse(f"a call of {function.id!r} is not allowed")
            given = (
                (*node.args, *(keyword.value for keyword in node.keywords))
                if function.id in _CALL_WHAT_THEY_GET
                else ()
            )
            for part in given:
                if (place := reference_of(part)) is not None and self.places.calls_a_taker(place):
                    self.refuse(f"{place} is handed on; it reads or writes whatever it is called with")
        elif isinstance(function, ast.Attribute):
            if function.attr == "attach" and len(node.args) + len(node.keywords) > 1:
                self.refuse(".attach takes the engine alone: handlers make names of files of another name")
            self.visit(function.value if is_conversion(node) else function, local)
        elif (place := reference_of(function)) is not None:
            if self.places.calls_a_taker(place):
                self.refuse(f"a call of {place}, which reads or writes what it is given")
        else:
            self.refuse("only a reference, a method or a listed function can be called")
            self.visit(function, local)

    def _binop(self, node: ast.BinOp, local: frozenset[str]) -> None:
        text = isinstance(node.left, ast.JoinedStr) or (
            isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        )
        if isinstance(node.op, ast.Mod) and text:
            self.refuse("formatting a string with % is not allowed")
        if isinstance(node.op, ast.Pow):
            small = isinstance(node.right, ast.Constant) and isinstance(node.right.value, int | float)
            if not small or abs(node.right.value) > 16:  # type: ignore[attr-defined]
                self.refuse("a power needs a constant exponent of at most 16")
            self.visit(node.left, local)
            return
        self._children(node, local)

    def _joinedstr(self, node: ast.JoinedStr, local: frozenset[str]) -> None:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = getattr(part.format_spec, "values", [])
                if not all(isinstance(piece, ast.Constant) for piece in spec):
                    self.refuse("a format that is computed is not allowed")
                self.visit(part.value, local)
            else:
                self.visit(part, local)

    def _lambda(self, node: ast.Lambda, local: frozenset[str]) -> None:
        spec = node.args
        if spec.kw_defaults or spec.kwonlyargs or spec.vararg or spec.kwarg:
            self.refuse("a lambda may only have plain parameters")
        for default in spec.defaults:  # it is handed on and not called: names that are bound here never are
            self.visit(default, local)
        bound = self._bind([argument.arg for argument in [*spec.posonlyargs, *spec.args]])
        self.visit(node.body, (local - set(map(text_name, bound))) | bound)

    def _bind(self, names: list[str]) -> frozenset[str]:
        for name in names:
            if not _LOCAL_NAME.fullmatch(name) or name in self.roots or name in BUILTINS:
                self.refuse(f"the name {name!r} hides another name")
        return frozenset(names)

    def _comprehension(self, node: ast.AST, local: frozenset[str]) -> None:
        for generator in getattr(node, "generators", []):
            if generator.is_async:
                self.refuse("async is not allowed in an expression")
            texts = self.places.texts.lists_texts(generator.iter, self.roots, local)
            self.visit(generator.iter, local)
            targets = [part for part in ast.walk(generator.target) if isinstance(part, ast.expr)]
            if not all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                self.refuse("a comprehension may only bind plain names")
            bound = self._bind([target.id for target in targets if isinstance(target, ast.Name)])
            local = (local - set(map(text_name, bound))) | bound
            if texts and isinstance(generator.target, ast.Name):
                local |= {text_name(generator.target.id)}
            for condition in generator.ifs:
                self.visit(condition, local)
        for part in ast.iter_child_nodes(node):
            if not isinstance(part, ast.comprehension):
                self.visit(part, local)

    _listcomp = _setcomp = _generatorexp = _dictcomp = _comprehension
