"""Judge a bundle's configs as data: every target, expression, macro and key in them, wherever it stands."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.bundle.allowlist import READERS_AND_WRITERS, is_function, is_loader, is_target
from medseg.bundle.audit_expressions import (
    imported_names,
    is_import,
    judge_argument,
    judge_expression,
    judge_import,
)
from medseg.bundle.config import (
    SEPARATOR,
    ModulePlaces,
    absolute_text,
    place_of,
    strings_in,
)
from medseg.bundle.findings import Finding, Severity

_LARGEST_BYTES = 64 * 1024 * 1024
_PLAIN_MACRO = re.compile(r"(#|::)*\w+((#|::)\w+)*", re.ASCII)
_RELATIVE = re.compile(r"[@%](#|::)")
_WORD = re.compile(r"\w+", re.ASCII)
_SINKS = frozenset({"reader", "writer", "merger_cls"})
_CONSTANTS = frozenset({"allow_pickle", "weights_only", "pickle_module", "_debug_"})
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(pt|ts|csv|json|txt)")
_READER_VALUE = re.compile(r"\$\s*monai\.data\.(\w+)\s*")


class DuplicateKey(ValueError):
    """A JSON object states one key twice; readers disagree on which counts."""


def parse_json(data: bytes) -> Any:
    """Parse strict JSON.

    Raises
    ------
    DuplicateKey
        If an object holds the same key twice, also when written with the two separators of config ids.
    ValueError
        If it is no JSON, nested too deeply or not UTF-8.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in pairs:
            plain = key.replace("#", SEPARATOR).lstrip("+")
            if plain in seen:
                raise DuplicateKey(f"the key {key!r} stands twice in one object")
            seen.add(plain)
        return dict(pairs)

    if len(data) > _LARGEST_BYTES:
        raise ValueError(f"{len(data)} bytes are too many for a config")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_imports(config: Any) -> dict[str, str]:
    """Names that the import statements of a parsed config bind, to dotted modules; refused imports are left out."""
    bound: dict[str, str] = {}
    for _, value in strings_in(config):
        if value.startswith("$") and is_import(value[1:]) and not judge_import(value[1:]):
            bound.update(imported_names(value[1:]))
    return bound


def judge_config(
    file: str, config: Any, imports: Mapping[str, str], modules: ModulePlaces | None = None
) -> list[Finding]:
    """Findings on one parsed config.

    Parameters
    ----------
    file
        Name of the config inside the bundle, for the findings.
    config
        What :func:`parse_json` gave.
    imports
        Names bound by the imports of this config and of those it is laid over.
    modules
        Where imports stand in those configs; by default only this one.
    """
    return list(_ConfigJudge(file, imports, modules or ModulePlaces([config])).judge(config))


def _hidden(text: str) -> bool:
    """Whether a text holds characters that are invisible or change the reading order."""
    return any(unicodedata.category(char) in {"Cf", "Cc", "Co", "Cs"} and char not in "\n\r\t" for char in text)


class _ConfigJudge:
    def __init__(self, file: str, imports: Mapping[str, str], modules: ModulePlaces) -> None:
        self.file = file
        self.modules = modules
        self.imports = imports
        self.is_metadata = Path(file).name == "metadata.json"

    def _found(self, path: tuple[str, ...], what: str, why: str, severity: Severity = "block") -> Finding:
        return Finding(severity, self.file, SEPARATOR.join(path), what, why)

    def judge(self, value: Any, path: tuple[str, ...] = ()) -> Iterator[Finding]:
        if isinstance(value, Mapping):
            yield from self._callable(value, path)
            for key, item in value.items():
                yield from self._key(key, item, path)
                yield from self.judge(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.judge(item, (*path, str(index)))
        elif isinstance(value, str):
            yield from self._text(value, path)

    def _key(self, key: str, value: Any, path: tuple[str, ...]) -> Iterator[Finding]:
        here = (*path, key)
        if not key.isascii() and not self.is_metadata:
            yield self._found(here, f"the id {key!r} holds letters outside ASCII", "it can pass for another id")
        elif _hidden(key):
            yield self._found(here, "an id holds invisible characters", "it can pass for another id")
        last = place_of([key])[-1]
        rule: Callable[[tuple[str, ...], str, Any], Iterator[Finding]] | None = {
            "_target_": self._target, "_mode_": self._mode,
        }.get(last)  # fmt: skip
        if rule is not None:
            yield from rule(here, last, value)
        elif last in _SINKS:
            yield from self._sink(here, last, value)
        elif last in _CONSTANTS:
            problem = judge_argument(last, value)
            if problem:
                yield self._found(here, problem, "write the safe constant or leave it out")
        elif last.endswith("filename") and isinstance(value, str) and not _PLAIN_FILE.fullmatch(value):
            yield self._found(
                here, f"the file name {value!r}", "it can lead out of the output folder; write a plain name"
            )
        elif last in {"pretrained", "use_pretrained"} and value not in (None, False):
            yield self._found(here, "weights are fetched from the internet", "ship them in models/ instead", "warn")

    def _target(self, here: tuple[str, ...], _: str, value: Any) -> Iterator[Finding]:
        if not isinstance(value, str) or value[:1] in "$@%":
            yield self._found(here, f"a target that is computed: {value!r}", "write the name of the class")
        elif not (is_target(value) or (value.startswith(("torch.", "monai.")) and is_function(value))):
            yield self._found(
                here, f"the target {value!r} is not on the list of allowed classes", "it would be imported and called"
            )
        elif value.startswith("medseg.") and Path(self.file).name == "inference.json":
            yield self._found(here, f"inference needs {value}", "other MONAI tools cannot run this bundle", "warn")

    def _callable(self, component: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Finding]:
        """A class that imports by name, kept as a callable, could be called with any argument later."""
        target = component.get("_target_")
        if isinstance(target, str) and is_loader(target) and component.get("_mode_", "default") != "default":
            yield self._found(path, f"{target} as a callable", "it imports whatever it is called with")

    def _mode(self, here: tuple[str, ...], _: str, value: Any) -> Iterator[Finding]:
        if value not in ("default", "callable"):
            yield self._found(here, f"_mode_ is {value!r}", "only 'default' and 'callable' do not start a debugger")

    def _sink(self, here: tuple[str, ...], name: str, value: Any) -> Iterator[Finding]:
        """An argument from which MONAI imports whatever it names."""
        if isinstance(value, list):
            for item in value:
                yield from self._sink(here, name, item)
        elif isinstance(value, str):
            expression = _READER_VALUE.fullmatch(value)
            plain = expression.group(1) if expression else value
            problem = judge_argument(name, plain)
            if problem or (expression and plain not in READERS_AND_WRITERS):
                yield self._found(
                    here, problem or f"{name} is {value!r}", "name one of MONAI's own readers and writers"
                )
        elif value is not None and not (isinstance(value, Mapping) and "_target_" in value):
            yield self._found(
                here, f"{name} is a {type(value).__name__}", "name one of MONAI's own readers and writers"
            )

    def _text(self, value: str, path: tuple[str, ...]) -> Iterator[Finding]:
        if _hidden(value):
            yield self._found(path, "a text holds invisible characters", "what is shown is not what is read")
        if value.startswith("%") and not _PLAIN_MACRO.fullmatch(value[1:]):
            yield self._found(
                path, f"the macro {value!r} is no plain id", "it reads a file of the current directory, unjudged"
            )
        if _RELATIVE.search(value) and not all(_WORD.fullmatch(part) for part in place_of(path)):
            yield self._found(path, "a relative reference below an unusual id", "the id would become part of the code")
        absolute = absolute_text(value, path)
        reached = self.modules.reached_by(absolute)
        if reached is not None:
            yield self._found(path, f"a reference to {reached}, which holds an import", "it would hand out a module")
        if not value.startswith("$"):
            return
        text = value[1:] if is_import(value[1:]) else absolute[1:]
        problems = judge_import(text) if is_import(text) else judge_expression(text, self.imports)
        for problem in problems:
            yield self._found(path, problem, f"{_shorten(value)} would be executed")


def _shorten(text: str, length: int = 80) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")
