"""Judge a bundle's configs as data: every target, expression, macro and key in them, wherever it stands."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.bundle.allowlist import READERS_AND_WRITERS, is_function, is_loader, is_shipped, is_target
from medseg.bundle.audit_expressions import imported_names, is_import, judge_argument, judge_expression, judge_import
from medseg.bundle.config import SEPARATOR, absolute_text, place_of, referred, strings_in
from medseg.bundle.findings import Finding, Severity

METADATA = "configs/metadata.json"
META_ID = "_meta_"
"""Where MONAI mounts the metadata in a config."""

_PLAIN_MACRO = re.compile(r"(#|::)*\w+((#|::)\w+)*", re.ASCII)
_RELATIVE = re.compile(r"[@%](#|::)")
_WORD = re.compile(r"\w+", re.ASCII)
_SINKS = frozenset({"reader", "writer", "merger_cls"})
_CONSTANTS = frozenset({"allow_pickle", "weights_only", "pickle_module", "_debug_", "compile_kwargs", "pretrained_url"})
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(pt|ts|csv|json|txt)")
_SHOWN = 80
_READER_VALUE = re.compile(r"\$\s*monai\.data\.(\w+)\s*")


def read_imports(config: Any) -> dict[str, str]:
    """Names that the import statements of a parsed config bind, to dotted modules; refused imports are left out."""
    bound: dict[str, str] = {}
    for _, value in strings_in(config):
        if value.startswith("$") and is_import(value[1:]) and not judge_import(value[1:]):
            bound.update(imported_names(value[1:]))
    return bound


class ModulePlaces:
    """Where import statements stand in a bundle's configs, which are laid over each other.

    MONAI replaces an import statement by the module it imports. An expression that refers to such an item would hold
    the module itself, and ``.replace`` of a text is harmless, that of ``os`` is not: such references are refused.
    """

    def __init__(self, configs: Iterable[Any]) -> None:
        self._lists = {
            tuple(place_of(path)[:-1])
            for config in configs
            for path, text in strings_in(config)
            if text.startswith("$") and is_import(text[1:])
        }

    def reached_by(self, text: str) -> str | None:
        """First reference in an absolute config string that reaches a module, or a container of one."""
        for name in referred(text):
            parts = tuple(name.split(SEPARATOR)) if name else ()
            if any(holder[: len(parts)] == parts or parts[:-1] == holder for holder in self._lists):
                return name or "the whole config"
        return None


def judge_config(file: str, config: Any, imports: Mapping[str, str], modules: ModulePlaces) -> list[Finding]:
    """Findings on one parsed config.

    ``file``: Name of the config inside the bundle, for the findings. ``config``: Its tree, as it is evaluated.
    ``imports``: Names bound by the imports of this config and of those it is laid over. ``modules``: Where imports
    stand in those configs.
    """
    return list(_ConfigJudge(file, imports, modules).judge(config))


def _hidden(text: str) -> bool:
    """Whether a text holds characters that are invisible or change the reading order."""
    return any(unicodedata.category(char) in {"Cf", "Cc", "Co", "Cs"} and char not in "\n\r\t" for char in text)


class _ConfigJudge:
    def __init__(self, file: str, imports: Mapping[str, str], modules: ModulePlaces) -> None:
        self.file = file
        self.modules = modules
        self.imports = imports
        self.is_metadata = file == METADATA

    def _found(self, path: tuple[str, ...], what: str, why: str, severity: Severity = "block") -> Finding:
        return Finding(severity, self.file, SEPARATOR.join(path[self.is_metadata :]), what, why)

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
        if last == "_target_":
            yield from self._target(here, value)
        elif last == "_mode_" and value not in ("default", "callable"):
            yield self._found(here, f"_mode_ is {value!r}", "only 'default' and 'callable' do not start a debugger")
        elif last in _SINKS:
            yield from self._sink(here, last, value)
        elif last in _CONSTANTS:
            if problem := judge_argument(last, value):
                yield self._found(here, problem, "write the safe constant or leave it out")
        elif last.endswith("filename") and isinstance(value, str) and not _PLAIN_FILE.fullmatch(value):
            why = "it can lead out of the output folder; write a plain name"
            yield self._found(here, f"the file name {value!r}", why)
        elif last in {"pretrained", "use_pretrained"} and value not in (None, False):
            yield self._found(here, "weights are fetched from the internet", "ship them in models/ instead", "warn")

    def _target(self, here: tuple[str, ...], value: Any) -> Iterator[Finding]:
        if not isinstance(value, str) or value[:1] in "$@%":
            yield self._found(here, f"a target that is computed: {value!r}", "write the name of the class")
        elif not (is_target(value) or (value.startswith(("torch.", "monai.")) and is_function(value))):
            outside = (
                "is code that comes with the bundle" if is_shipped(value) else "is not on the list of allowed classes"
            )
            yield self._found(here, f"the target {value!r} {outside}", "it would be imported and called")
        elif value.startswith("medseg.") and Path(self.file).stem == "inference":
            yield self._found(here, f"inference needs {value}", "other MONAI tools cannot run this bundle", "warn")

    def _callable(self, component: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Finding]:
        """A class that imports by name, kept as a callable, could be called with any argument later."""
        target = component.get("_target_")
        if isinstance(target, str) and is_loader(target) and component.get("_mode_", "default") != "default":
            yield self._found(path, f"{target} as a callable", "it imports whatever it is called with")

    def _sink(self, here: tuple[str, ...], name: str, value: Any) -> Iterator[Finding]:
        """An argument from which MONAI imports whatever it names."""
        why = "name one of MONAI's own readers and writers"
        if isinstance(value, list):
            for item in value:
                yield from self._sink(here, name, item)
        elif isinstance(value, str):
            expression = _READER_VALUE.fullmatch(value)
            plain = expression.group(1) if expression else value
            problem = judge_argument(name, plain)
            if problem or (expression and plain not in READERS_AND_WRITERS):
                yield self._found(here, problem or f"{name} is {value!r}", why)
        elif value is not None and not (isinstance(value, Mapping) and "_target_" in value):
            yield self._found(here, f"{name} is a {type(value).__name__}", why)

    def _text(self, value: str, path: tuple[str, ...]) -> Iterator[Finding]:
        if _hidden(value):
            yield self._found(path, "a text holds invisible characters", "what is shown is not what is read")
        if "__local_refs" in value:
            yield self._found(path, "it names MONAI's own table of items", "write @id: references are judged, not this")
        if value.startswith("%") and not _PLAIN_MACRO.fullmatch(value[1:]):
            why = "it reads a file of the current directory, unjudged"
            yield self._found(path, f"the macro {value!r} is no plain id", why)
        if _RELATIVE.search(value) and not all(_WORD.fullmatch(part) for part in place_of(path)):
            yield self._found(path, "a relative reference below an unusual id", "the id would become part of the code")
        absolute = absolute_text(value, path)
        if (reached := self.modules.reached_by(absolute)) is not None:
            yield self._found(path, f"a reference to {reached}, which holds an import", "it would hand out a module")
        if not value.startswith("$"):
            return
        text = value[1:] if is_import(value[1:]) else absolute[1:]
        shown = value if len(value) <= _SHOWN else f"{value[: _SHOWN - 1]}…"
        for problem in judge_import(text) if is_import(text) else judge_expression(text, self.imports):
            yield self._found(path, problem, f"{shown!r} would be executed")
