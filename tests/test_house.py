"""The package is built as docs/architecture.md says: no circles, nothing long, nothing tiny, nothing that is not there.

What breaks a rule today stands in a list below. The lists only shrink: an entry that is no longer true fails as well.
`python -m benchmarks.house --small` prints the entries of SMALL, `--list` those of the others.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from benchmarks.house import House

ROOT = Path(__file__).parents[1]

KNOWN_CIRCLES: set[str] = set()
"""Groups of modules that import each other."""

LONG: set[str] = set()
"""Files over 400 lines and functions over 60."""

SMALL: dict[str, str] = {
    "medseg.cli.main": "where the command begins",
    "medseg.networks.restoring": "a network of its own, beside those of other kinds",
}
"""Modules under 80 lines with one importer, and why they are files of their own."""

PRIVATE: set[str] = set()
"""Private names that another file uses."""

OWN_FACE: set[str] = set()
"""Files that import the `__init__` of a room that they are in."""

WHOLE: set[str] = set()
"""Files that import `medseg` itself."""

TORCH_ROOMS = ("networks", "transforms", "training", "inference", "trust")
"""Rooms whose files import torch and MONAI at module level; elsewhere that is done when they are needed."""

TORCH_ELSEWHERE: set[str] = {"medseg.devices"}
"""Files of other rooms that do so, too."""


def differences(found: Collection[str], known: Collection[str]) -> list[str]:
    """What breaks a rule and is not known, and what is known but no longer breaks it."""
    new = [f"new: {name}" for name in sorted({*found} - {*known})]
    return new + [f"gone, strike it from the list: {name}" for name in sorted({*known} - {*found})]


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def test_no_circles(house: House) -> None:
    assert differences([" ".join(circle) for circle in house.circles()], KNOWN_CIRCLES) == []


def test_nothing_is_long(house: House) -> None:
    assert differences([*house.long_files(), *house.long_functions()], LONG) == []


def test_small_modules_have_a_reason(house: House) -> None:
    assert differences(house.small(), SMALL) == []


def test_private_names_stay_in_their_file(house: House) -> None:
    assert differences(house.private_names(), PRIVATE) == []


def test_rooms_import_their_files_and_not_their_own_face(house: House) -> None:
    assert differences(house.own_faces(), OWN_FACE) == []


def test_nobody_inside_imports_the_whole(house: House) -> None:
    assert differences(house.of_the_whole(), WHOLE) == []


def imports_at_once(tree: ast.AST) -> Iterator[str]:
    """Packages that a file imports when it is imported itself, not in a function nor for type checking."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for other in node.orelse for name in imports_at_once(other))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_at_once(node)


def with_torch(house: House) -> set[str]:
    """Modules that import torch or MONAI at once."""
    return {name for name, module in house.modules.items() if {"torch", "monai"} & {*imports_at_once(module.tree)}}


def test_torch_is_imported_at_once_in_few_rooms_only(house: House) -> None:
    found = {name for name in with_torch(house) if house.modules[name].room not in TORCH_ROOMS}
    assert differences(found - {"medseg.evaluation.handlers"}, TORCH_ELSEWHERE) == []


PRINTING = {"medseg.cli._app", "medseg.cli._text", "medseg.cli._progress"}
"""Files that write to a terminal: every text there passes through `printable` of medseg/cli/_text.py."""

TABLES = {"medseg.tables"}
"""The file that reads and writes CSV."""

_PRINTS = {"print", "Console", "secho", "pprint", "print_exc", "showwarning", "basicConfig", "StreamHandler"}
_STREAMS = (
    "typer.echo",
    "click.echo",
    "sys.stdout.write",
    "sys.stderr.write",
    "sys.stdout.buffer",
    "sys.stderr.buffer",
)
_CSV = {"writer", "DictWriter", "DictReader", "to_csv", "savetxt"}


def calls(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a file calls: as it is written, and the last name alone; methods of a console are none of these."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            last = written.rpartition(".")[2]
            if last != "print" or written in ("print", "rich.print", "builtins.print"):
                yield written, last


def test_texts_reach_a_terminal_in_one_way(house: House) -> None:
    found = {
        name
        for name, one in house.modules.items()
        if any(last in _PRINTS or written.startswith(_STREAMS) for written, last in calls(one.tree))
    }
    assert differences(found, PRINTING) == []


def test_tables_are_written_in_one_place(house: House) -> None:
    found = {name for name, one in house.modules.items() if {last for _, last in calls(one.tree)} & _CSV}
    imported = {name for name, one in house.modules.items() if "csv" in imports_at_once(one.tree)}
    assert differences((found - {"medseg.training.metrics_log"}) | imported, TABLES) == []


_NAME = re.compile(r"(?<![\w./@-])medseg(?:\.[A-Za-z_]\w*)+")
_PAGES = ("README.md", "docs/*.md", "pyproject.toml", "bundles/**/*.json", "bundles/**/*.md", "medseg/**/templates/*")
_FILES = {"medseg.json"}


def dotted_names(root: Path) -> Iterator[tuple[str, str]]:
    """Files outside the package's code and the names of the package in them."""
    for pattern in _PAGES:
        for path in sorted(root.glob(pattern)):
            for name in sorted(set(_NAME.findall(path.read_text(encoding="utf-8"))) - _FILES):
                yield str(path.relative_to(root)), name


def exists(name: str) -> bool:
    """Whether a dotted name leads to something: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_name_in_docs_bundles_and_templates_exists() -> None:
    named = list(dotted_names(ROOT))
    assert {"pyproject.toml", "docs/inference.md", "medseg/planning/templates/train.json"} <= {
        file for file, _ in named
    }
    assert [(file, name) for file, name in named if not exists(name)] == []


# The rails themselves, on made-up packages.


def built(root: Path, **files: str) -> House:
    """A package `medseg` of the given files, `room__file` for room/file.py."""
    for name, text in {"__init__": "", **files}.items():
        *rooms, last = [name] if name.startswith("__") else name.split("__", 1)
        path = root.joinpath("medseg", *rooms, f"{last or '__init__'}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in (path.parent / "__init__.py",) if rooms else ():
            folder.touch()
    return House(root)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import medseg.room.b", "from medseg.room import a"),
        ("def lazy():\n    from medseg.room.b import name", "from medseg.room.a import other"),
        ("if TYPE_CHECKING:\n    from medseg.room.b import Name", "from medseg.room.a import other"),
        ("from .b import name", "from . import a"),
    ],
)
def test_a_circle_is_found(tmp_path: Path, first: str, second: str) -> None:
    assert built(tmp_path, room__a=first, room__b=second).circles() == [["medseg.room.a", "medseg.room.b"]]


def test_a_chain_is_no_circle(tmp_path: Path) -> None:
    chain = {"room__": "from medseg.room.a import x", "room__a": "from medseg.room.b import x", "room__b": "x = 1"}
    assert built(tmp_path, **chain).circles() == []


def test_a_face_that_resolves_on_use_is_in_a_circle_with_its_file(tmp_path: Path) -> None:
    face = "from importlib import import_module\n_HOMES = {'x': 'a'}\nload = import_module"
    house = built(tmp_path, room__=face, room__a="def late():\n    from medseg.room import y")
    assert house.circles() == [["medseg.room", "medseg.room.a"]]
    assert house.own_faces() == ["medseg.room.a > medseg.room"]


def test_long_files_and_functions_are_found_without_their_docstrings(tmp_path: Path) -> None:
    docstring = '    """' + "\n" * 70 + '    """\n'
    described = f"def described():\n{docstring}" + "    x = 1\n" * 59
    method = "class Some:\n    def method(self):\n" + "        x = 1\n" * 60
    house = built(tmp_path, short=described, long="x = 1\n" * 401, room__some=method)
    assert house.long_functions() == ["medseg.room.some.Some.method"]
    assert house.long_files() == ["medseg.long"]


def test_small_modules_are_found_where_their_names_come_from(tmp_path: Path) -> None:
    files = {
        "room__": "from medseg.room.shared import used",
        "room__shared": "used = 1",
        "room__tiny": "x = 1",
        "room__large": "x = 1\n" * 80,
        "user": "from medseg.room import used\nfrom medseg.room.tiny import x\nfrom medseg.room.large import x as y",
    }
    assert built(tmp_path, **files).small() == {"medseg.room.tiny": "medseg.user"}


def test_private_names_are_found_except_a_rooms_own_private_files(tmp_path: Path) -> None:
    files = {
        "_version": "",
        "room___app": "",
        "room__a": "from medseg.room._app import app\nimport medseg._version\nfrom medseg.other import b\nb._hidden()",
        "other__b": "from medseg.room.a import _name, Public\nPublic._inner\nPublic.__name__",
        "other__c": "from medseg.room._app import app",
    }
    assert built(tmp_path, **files).private_names() == [
        "medseg.other.b > medseg.room.a.Public._inner",
        "medseg.other.b > medseg.room.a._name",
        "medseg.other.c > medseg.room._app",
        "medseg.room.a > medseg.other.b._hidden",
    ]


def test_the_whole_is_found_and_its_rooms_are_not_taken_for_it(tmp_path: Path) -> None:
    files = {"room__a": "from medseg import __version__", "room__b": "import medseg", "c": "from medseg import room"}
    assert built(tmp_path, **files).of_the_whole() == ["medseg.room.a", "medseg.room.b"]


def test_torch_is_found_where_it_is_imported_at_once(tmp_path: Path) -> None:
    files = {
        "late": "def f():\n    import torch\nif TYPE_CHECKING:\n    from torch import nn",
        "plain": "import torch.nn",
        "guarded": "try:\n    from monai.data import MetaTensor\nexcept ImportError:\n    pass",
    }
    assert with_torch(built(tmp_path, **files)) == {"medseg.plain", "medseg.guarded"}


def test_names_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("`medseg.files.write_json`, `medseg.nowhere`, https://a.org/medseg.html")
    names = [name for _, name in dotted_names(tmp_path)]
    assert names == ["medseg.files.write_json", "medseg.nowhere"]
    assert [exists(name) for name in names] == [True, False]
    assert not exists("medseg.files.nothing")


def test_lists_only_shrink() -> None:
    assert differences(["a", "b"], ["b"]) == ["new: a"]
    assert differences(["b"], {"b": "why", "c": "why"}) == ["gone, strike it from the list: c"]


def test_no_name_of_a_lazy_face_is_a_file_of_its_room() -> None:
    """Once the file is imported, Python puts the module in the name's place."""
    for face in ROOT.glob("medseg/*/__init__.py"):
        text = face.read_text(encoding="utf-8")
        homes = re.findall(r'": "([\w ]+)"', text.partition("lazily(\n")[2])
        lazy = {name for words in homes for name in words.split()}
        assert not lazy & {file.stem for file in face.parent.glob("*.py")}, face
