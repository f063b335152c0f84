"""Where a bundle's configs write, read and connect: arguments that name a place, a file or a host, told by the text.

A bundle may write below its output folder, read what lies in it, and connect to nothing. What an argument comes to is
worked out from the configs' text, references followed; what cannot be told is refused. Values that the user gave on the
command line are the user's own choice.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg.bundle.allowlist import READERS_AND_WRITERS, is_loader
from medseg.bundle.audit_texts import BUNDLE, DATA, OUTPUT, ROOTS, USER, Texts, whole_reference
from medseg.bundle.config import SEPARATOR, absolute_text, referred, target_of

Kind = Literal["write", "read", "folder", "name", "address", "names", "constant"]
"""What an argument names: a folder or file that is written; a file that is read; a folder that is looked into; a file's
name, without a folder; a server; an object whose keys become names of files; something that may only be left out."""

_TABLE: dict[str, Any] = json.loads((Path(__file__).resolve().parent / "data" / "places.json").read_text())
_KINDS: dict[str, Kind] = {name: kind for kind, names in _TABLE["arguments"].items() for name in names}
_POSITIONS: dict[str, tuple[int, Kind]] = {
    name.rpartition(".")[2]: (at, kind) for name, (at, kind) in _TABLE["positions"].items()
}
_TAKERS = frozenset(_TABLE["takers"])
SAVERS = frozenset(_TABLE["savers"])
"""Transforms that write the image they are given."""
REQUIRED: Mapping[str, str] = _TABLE["required"]
"""Classes that write to the current folder, or fetch weights, unless this argument says otherwise."""

WRITERS = frozenset(
    {name for name, needed in REQUIRED.items() if needed == "log_dir"}
    | {"PersistentDataset", "CacheNTransDataset", "CheckpointSaver", "LogfileHandler"}
)
"""Classes that write, some as soon as they are made; a config for inference has no use for them."""

_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(pt|ts|csv|json|txt)")
_LISTS = (".json", ".csv", ".npz")
_COMPOSED = frozenset({"Compose", "OneOf", "SomeOf", "RandomOrder"})
_DEEPEST = 20


def kind_of(argument: str, owner: str = "") -> Kind | None:
    """What kind of place an argument of this name is, by the table; None if it names none.

    ``owner``: The class that takes it; some words name a place for one class alone.
    """
    return "name" if argument.endswith("filename") else _KINDS.get(f"{owner}.{argument}", _KINDS.get(argument))


def by_keyword_only(target: str) -> bool:
    """Whether a class or function takes an argument that is judged by its name: it must be given by that name.

    Such a class may neither be called by position nor be handed on.
    """
    return is_loader(target) or target.rpartition(".")[2] in _TAKERS


def takes_a_place(target: str) -> bool:
    """Whether a class or function reads or writes what one of its arguments names, by keyword or by position.

    It may not be handed on: whoever calls it then says what it reads.
    """
    return by_keyword_only(target) or position_of(target) is not None


def position_of(target: str) -> tuple[int, Kind] | None:
    """Which positional argument of a function names a place, and of what kind; whichever module it is named by."""
    return _POSITIONS.get(target.rpartition(".")[2])


@dataclass(frozen=True)
class Problem:
    """Why an argument is refused."""

    what: str
    # what MONAI's users expect of a training, and medseg does not do: to write into the bundle, to fetch weights
    usual: bool = False


class Places:
    """Judges the arguments of a bundle's configs that name places, by what ``texts`` knows of the configs."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def problem(self, name: str, value: Any, path: tuple[str, ...], owner: str = "") -> Problem | None:
        """Why the value of an argument in a config is refused, or None."""
        kind = kind_of(name, owner)
        if kind is None or value in (None, False, "", "$None", "$False"):
            return None
        if kind == "constant":
            return _constant(name)
        if kind == "names":
            return self._keys(name, value, path)
        return self._judge(name, kind, self.texts.of_value(value, path))

    def problem_of_node(self, name: str, node: ast.expr, roots: Mapping[str, str], owner: str) -> Problem | None:
        """The same for an argument that is given in an expression."""
        kind = kind_of(name, owner)
        if kind is None or (isinstance(node, ast.Constant) and node.value in (None, False, "")):
            return None
        if kind in ("constant", "names"):
            return _constant(name)
        return self.path_problem(name, kind, node, roots)

    def path_problem(self, name: str, kind: Kind, node: ast.expr, roots: Mapping[str, str]) -> Problem | None:
        """The same for an argument of a kind, whatever its name."""
        return self._judge(name, kind, self.texts.of_node(node, roots, 0))

    def root_problem(self, name: str, value: Any) -> Problem | None:
        """Why the value of one of the ids that stand for a folder of their own is refused, or None."""
        if name == "bundle_root":
            return None if value in (".", "./") else Problem(f"bundle_root is {value!r}, expected '.'")
        problem = self.problem(name, value, (name,))
        return None if problem is None or problem.usual else problem

    def calls_a_taker(self, place: str) -> bool:
        """Whether what an id refers to may not be called by position, because it reads or writes what it is given."""
        called = [target_of(item) for item in self.texts.items(place) if isinstance(item, Mapping)]
        return any(takes_a_place(name) and name != "CheckpointLoader" for name in called)

    def is_file_step(self, place: str, depth: int = 0) -> bool:
        """Whether an id is a transform that reads or writes images, or holds one as a step."""
        return depth < _DEEPEST and any(self._is_file_step(item, depth) for item in self.texts.items(place))

    def _is_file_step(self, value: Any, depth: int) -> bool:
        if isinstance(value, str):
            return any(self.is_file_step(name, depth + 1) for name in referred(absolute_text(value, ())))
        if isinstance(value, list):
            return any(self._is_file_step(part, depth) for part in value)
        if not isinstance(value, Mapping):
            return False
        name = target_of(value)
        return is_file_step(name) or (name in _COMPOSED and self._is_file_step(value.get("transforms"), depth))

    def _judge(self, name: str, kind: Kind, texts: frozenset[str] | None) -> Problem | None:
        if texts is None:
            return Problem(f"what {name} comes to cannot be told from the text")
        judged = [_JUDGES[kind](name, text) for text in sorted(texts)]
        problems = [problem for problem in judged if problem is not None]
        return min(problems, key=lambda problem: problem.usual, default=None)

    def _keys(self, name: str, value: Any, path: tuple[str, ...], depth: int = 0) -> Problem | None:
        """An object, or what a reference to one names; its keys are judged where it stands."""
        if value is None or (isinstance(value, Mapping) and "_target_" not in value):
            return None
        place = whole_reference(absolute_text(value, path)) if isinstance(value, str) else None
        if place is None or depth > _DEEPEST:
            return Problem(f"{name} must be an object of the config: its keys become names of files")
        below = tuple(place.split(SEPARATOR))
        found = (self._keys(name, item, below, depth + 1) for item in self.texts.items(place))
        return next((problem for problem in found if problem is not None), None)


def is_file_step(target: str) -> bool:
    """Whether a class is a transform that reads or writes images."""
    return target.startswith(("LoadImage", "LoadVolume", "LoadLabel", "SaveImage"))


def is_reader(target: object) -> bool:
    """Whether a component's target is one of MONAI's own readers and writers, by its own name."""
    return isinstance(target, str) and target.removeprefix("monai.data.") in READERS_AND_WRITERS


def leads_out(key: str) -> bool:
    """Whether a key that becomes the name of a file leads out of the file's folder."""
    return key.startswith("/") or ".." in key.split("/") or not set(key).isdisjoint("\\~")


def _constant(name: str) -> Problem:
    usual = "pretrained" in name
    return Problem(f"{name}: weights are fetched from the internet" if usual else f"{name} must be left out", usual)


def _path_problem(rest: str) -> str | None:
    """What is wrong with a path below a folder; it begins with ``/`` or is empty."""
    rest = rest.replace(USER, "x")
    if rest and not rest.startswith("/"):
        return "goes on without a '/'"
    if ".." in rest.split("/") or not rest.isprintable() or set(rest) & set(":\\~"):
        return "leads out of it"
    return None if set(rest).isdisjoint(ROOTS.values()) else "joins two folders"


def _shown(text: str) -> str:
    for name, root in ROOTS.items():
        text = text.replace(root, f"@{name}")
    return repr(text.replace(USER, "…"))


def _write(name: str, text: str) -> Problem | None:
    root, rest = (text[0], text[1:]) if text[:1] in {*ROOTS.values(), USER} else ("", f"/{text}")
    if problem := _path_problem(rest):
        return Problem(f"{name} is {_shown(text)}, which {problem}")
    if root in (OUTPUT, USER):
        return None
    if root == ROOTS["dataset_dir"] or text.startswith("/"):
        return Problem(f"{name} is {_shown(text)}, which lies outside the output folder")
    return Problem(f"{name} is {_shown(text)}, not below @output_dir", usual=True)


def _read(name: str, text: str) -> Problem | None:
    if text[:1] == DATA and not text.endswith(_LISTS):
        # a bundle may write any dataset_dir, and what it names there may be a device that waits for ever
        return Problem(f"{name} is {_shown(text)}; below @dataset_dir lists alone are read ({', '.join(_LISTS)})")
    return _look_into(name, text)


def _look_into(name: str, text: str) -> Problem | None:
    if text[:1] in {*ROOTS.values(), USER}:
        problem = _path_problem(text[1:])
    else:
        problem = "begins elsewhere" if text.startswith("/") else _path_problem(f"/{text}")
    return Problem(f"{name} is {_shown(text)}, which is not in the bundle: it {problem}") if problem else None


def _address(name: str, text: str) -> Problem | None:
    if text[:1] in (OUTPUT, BUNDLE, USER):
        return _write(name, text)
    return Problem(f"{name} is the address {_shown(text)}, which the user alone may give")


def _name(name: str, text: str) -> Problem | None:
    plain = text.replace(USER, "x")
    if name.endswith("filename"):
        fine = _PLAIN_FILE.fullmatch(plain) is not None
    else:
        fine = plain.isprintable() and not set(plain) & {"/", "\\", ":", *ROOTS.values()} and ".." not in plain
    return None if fine else Problem(f"the file name {_shown(text)}")


_JUDGES = {"write": _write, "read": _read, "folder": _look_into, "address": _address, "name": _name}
