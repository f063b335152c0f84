"""The package as a house: its rooms, who imports whom, circles, long functions, what one command loads.

``python -m benchmarks.house [TREE] [--against OLDTREE] [--list] [--small] [--no-run]``

TREE (this checkout) and OLDTREE (a second column: what was before) are read as syntax trees, nothing of them is
imported; only the last rows come from a run, of ``medseg infer`` in a process of its own. How is counted:

* An import at module level, in a function, or for type checking is an import, and so is what a face (``__init__``)
  resolves on first use. The import of a module is none of the packages above it.
* Importers of a module are the files that name it, or take a name of it from a face; a face is an importer, too.
* A function's lines are those from ``def`` to its end without its docstring; functions within functions count, too.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from benchmarks.house_probe import run_once

HERE = Path(__file__).parents[1]
MOST_FILE_LINES, MOST_FUNCTION_LINES, SMALL_LINES = 400, 60, 80
BASE = "(base)"
Functions = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One name imported from (or one import of) a module of the package.

    Parameters
    ----------
    importer, target
        Dotted names of modules; packages stand for their ``__init__``.
    name, alias
        What is taken from the target, None for the module itself; and what it is called in the importer.
    """

    importer: str
    target: str
    name: str | None
    alias: str


@dataclass(frozen=True)
class Module:
    """One file of the package, parsed."""

    name: str
    tree: ast.Module
    lines: int
    is_face: bool

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 or (self.is_face and len(parts) == 2) else BASE

    @property
    def has_subject(self) -> bool:
        return not self.is_face and not self.name.endswith(".__main__")

    @cached_property
    def functions(self) -> dict[str, int]:
        """Lines per function, by dotted name."""
        return dict(_functions(self.tree, self.name))


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, Functions | ast.ClassDef)
        name = f"{prefix}.{child.name}" if isinstance(child, Functions | ast.ClassDef) else prefix
        if isinstance(child, Functions):
            yield name, _code_lines(child)
        yield from _functions(child, name if named else prefix)


def _code_lines(function: Functions) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


class House:
    """A package, read from its sources.

    Parameters
    ----------
    tree
        The checkout that holds the package.
    package
        Its name.
    """

    def __init__(self, tree: Path, package: str = "medseg") -> None:
        self.tree, self.package = tree, package
        self.modules = {module.name: module for module in self._read()}

    def _read(self) -> Iterator[Module]:
        for path in sorted((self.tree / self.package).rglob("*.py")):
            parts = path.relative_to(self.tree).with_suffix("").parts
            is_face = parts[-1] == "__init__"
            text = path.read_text(encoding="utf-8")
            yield Module(".".join(parts[:-1] if is_face else parts), ast.parse(text), text.count("\n"), is_face)

    @cached_property
    def imports(self) -> list[Import]:
        return [found for module in self.modules.values() for found in self._imports_of(module)]

    def _imports_of(self, module: Module) -> Iterator[Import]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.modules:
                        yield Import(module.name, alias.name, None, alias.asname or alias.name)
            elif isinstance(node, ast.ImportFrom):
                yield from self._from(module, node)
        if module.is_face:
            yield from self._resolved_on_use(module)

    def _from(self, module: Module, node: ast.ImportFrom) -> Iterator[Import]:
        base = node.module or ""
        if node.level:  # a relative import; a face is a package itself
            above = module.name.split(".")[
                : None if module.is_face and node.level == 1 else int(module.is_face) - node.level
            ]
            base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            called = alias.asname or alias.name
            if f"{base}.{alias.name}" in self.modules:
                yield Import(module.name, f"{base}.{alias.name}", None, called)
            elif base in self.modules:
                yield Import(module.name, base, alias.name, called)

    def _resolved_on_use(self, face: Module) -> Iterator[Import]:
        """Modules that a face imports by ``import_module``: its own ones that its strings name."""
        if not any(isinstance(node, ast.Name) and node.id == "import_module" for node in ast.walk(face.tree)):
            return
        for node in ast.walk(face.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                target = f"{face.name}.{node.value.removeprefix('.')}"
                if target in self.modules:
                    yield Import(face.name, target, None, "")

    @cached_property
    def edges(self) -> set[tuple[str, str]]:
        return {(found.importer, found.target) for found in self.imports if found.importer != found.target}

    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other, directly or over others."""
        names = sorted(self.modules)
        place = {name: number for number, name in enumerate(names)}
        pairs = np.array([(place[a], place[b]) for a, b in sorted(self.edges)], dtype=int).reshape(-1, 2).T
        graph = coo_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(len(names), len(names)))
        _, group_of = connected_components(graph, connection="strong")
        groups = [[name for name in names if group_of[place[name]] == group] for group in range(max(group_of) + 1)]
        return sorted(group for group in groups if len(group) > 1)

    @cached_property
    def importers(self) -> dict[str, set[str]]:
        """Who imports a module, names that are taken from a face counted for the module they come from."""
        homes = {(i.importer, i.alias): i for i in self.imports if self.modules[i.importer].is_face}
        found: dict[str, set[str]] = {name: set() for name in self.modules}
        for one in self.imports:
            step: Import | None = one
            while step is not None:
                found[step.target].add(one.importer)
                step = homes.get((step.target, step.name)) if step.name else None
        return {name: who - {name} for name, who in found.items()}

    def with_one_importer(self) -> list[str]:
        return [name for name, module in self.modules.items() if module.has_subject and len(self.importers[name]) == 1]

    def small(self) -> dict[str, str]:
        """Modules of few lines with one importer, and which it is."""
        few = [name for name in self.with_one_importer() if self.modules[name].lines < SMALL_LINES]
        return {name: next(iter(self.importers[name])) for name in few}

    def functions(self) -> dict[str, int]:
        return {name: lines for module in self.modules.values() for name, lines in module.functions.items()}

    def long_functions(self) -> list[str]:
        return [name for name, lines in self.functions().items() if lines > MOST_FUNCTION_LINES]

    def long_files(self) -> list[str]:
        return [name for name, module in self.modules.items() if module.lines > MOST_FILE_LINES]

    def own_faces(self) -> list[str]:
        """Files that take a name from the face of a room they are in."""
        return sorted({f"{a} > {b}" for a, b in self.edges if a.startswith(f"{b}.") and b != self.package})

    def of_the_whole(self) -> list[str]:
        """Files that import the package itself."""
        return sorted({a for a, b in self.edges if b == self.package})

    def private_names(self) -> list[str]:
        """Names with an underscore in front that another file uses; a private module is its own room's."""
        found = set()
        for one in self.imports:
            room, _, last = one.target.rpartition(".")
            if one.name and _is_private(one.name):
                found.add(f"{one.importer} > {one.target}.{one.name}")
            if _is_private(last) and one.importer != room and not one.importer.startswith(f"{room}."):
                found.add(f"{one.importer} > {one.target}")
        for module in self.modules.values():
            found |= self._private_attributes(module)
        return sorted(found)

    def _private_attributes(self, module: Module) -> set[str]:
        taken = {i.alias: i for i in self.imports if i.importer == module.name and i.alias}
        found = set()
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Attribute)
                and _is_private(node.attr)
                and (owner := taken.get(ast.unparse(node.value)))
            ):
                found.add(f"{module.name} > {'.'.join(filter(None, (owner.target, owner.name, node.attr)))}")
        return found


_OF_NAMED_TUPLES = ("_make", "_replace", "_asdict", "_fields")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _OF_NAMED_TUPLES


def figures(house: House) -> dict[str, str]:
    """Everything that is read from the sources, by label."""
    modules, lengths = house.modules.values(), house.functions().values()
    rooms = {room: [m for m in modules if m.room == room] for room in sorted({m.room for m in modules})}
    return {
        "files": str(len(modules)),
        "files with a subject": str(sum(m.has_subject for m in modules)),
        "lines": str(sum(m.lines for m in modules)),
        **{f"  {room}: files, lines": f"{len(own)}, {sum(m.lines for m in own)}" for room, own in rooms.items()},
        "files with one importer": str(len(house.with_one_importer())),
        f"  under {SMALL_LINES} lines": str(len(house.small())),
        "import circles": str(len(house.circles())),
        "  modules in them": str(sum(map(len, house.circles()))),
        f"files over {MOST_FILE_LINES} lines": str(len(house.long_files())),
        "functions": str(len(lengths)),
        "  median lines": f"{statistics.median(lengths):g}",
        f"  over {MOST_FUNCTION_LINES} lines": str(len(house.long_functions())),
        "private names across files": str(len(house.private_names())),
        "imports of the own room's face": str(len(house.own_faces())),
        "imports of bare medseg": str(len(house.of_the_whole())),
    }


def print_table(columns: Sequence[dict[str, str]], heads: Sequence[str]) -> None:
    labels = list(dict.fromkeys(label for column in columns for label in column))
    for label, *values in [("", *heads), *((label, *(c.get(label, "–") for c in columns)) for label in labels)]:
        print(f"{label:<44}" + "".join(f"{value:>16}" for value in values))


def print_lists(house: House) -> None:
    lists = {
        "one importer": [f"{name} < {', '.join(house.importers[name])}" for name in house.with_one_importer()],
        "circles": [" ".join(circle) for circle in house.circles()],
        "long files and functions": [*house.long_files(), *house.long_functions()],
        "private names": house.private_names(),
        "own room's face": house.own_faces(),
        "bare medseg": house.of_the_whole(),
    }
    for head, entries in lists.items():
        print("", f"{head} ({len(entries)})", *(f"  {entry}" for entry in entries), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, nargs="?", default=HERE)
    parser.add_argument("--against", type=Path, help="a checkout to compare with")
    parser.add_argument("--list", action="store_true", help="name what is counted")
    parser.add_argument("--small", action="store_true", help="print small modules with one importer, and nothing else")
    parser.add_argument("--no-run", action="store_true", help="leave out what a run must tell")
    given = parser.parse_args()
    house = House(given.tree)
    if given.small:
        print(*(f'    "{name}": "only {who}",' for name, who in house.small().items()), sep="\n")
        return
    trees = [given.against, given.tree] if given.against else [given.tree]
    columns = [figures(House(tree)) | ({} if given.no_run else run_once(tree)) for tree in trees]
    print_table(columns, ["before", "after"] if given.against else ["now"])
    if given.list:
        print_lists(house)


if __name__ == "__main__":
    main()
