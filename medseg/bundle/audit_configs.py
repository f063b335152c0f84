"""Judge a bundle's configs as data: every target, expression, macro and key in them, wherever it stands."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.bundle.allowlist import READERS_AND_WRITERS, SHIPPED, is_function, is_shipped, is_target
from medseg.bundle.audit_expressions import imported_names, is_import, judge_argument, judge_expression, judge_import
from medseg.bundle.audit_places import (
    REQUIRED,
    SAVERS,
    WRITERS,
    Places,
    Problem,
    is_file_step,
    is_reader,
    kind_of,
    leads_out,
    takes_a_place,
)
from medseg.bundle.audit_texts import Texts, whole_reference
from medseg.bundle.config import (
    META_ID,
    NUMBERS,
    SEPARATOR,
    absolute_text,
    is_plain_id,
    place_of,
    referred,
    strings_in,
    target_of,
)
from medseg.bundle.findings import COMMANDS, Command, Finding, Severity
from medseg.bundle.resolve import is_moved

METADATA = "configs/metadata.json"

_PLAIN_MACRO = re.compile(r"(#|::)*\w+((#|::)\w+)*", re.ASCII)
_RELATIVE = re.compile(r"[@%](#|::)")
_WORD = re.compile(r"\w+", re.ASCII)
_IMPORT_LISTS = frozenset({"imports", "initialize", "run", "training"})
_ENGINES = ("Evaluator", "Trainer")
_POST = "postprocessing"
_FOLDERS = frozenset({("bundle_root",), ("output_dir",)})
_CALLED = re.compile(r"(.*_)?(func|fn|function|transform)")
"""Arguments that are called with whatever their owner has at hand."""
_JOINED_REFERENCES = re.compile(r"\$?[\s@%\w:#+\[\],]*|\$copy\.deepcopy\(@[\w:]+\)", re.ASCII)
_SINKS = frozenset({"reader", "writer", "merger_cls"})
_CONSTANTS = frozenset({"allow_pickle", "weights_only", "pickle_module", "_debug_", "compile_kwargs", "pretrained_url"})
_CHOOSERS = ("OneOf", "SomeOf", "RandomOrder", "Lambda", "RandLambda")
_NOT_DROPPED = "medseg reads the images and saves the labels by itself, and drops such steps from plain lists alone"
_SHOWN = 80
_READER_VALUE = re.compile(r"\$\s*monai\.data\.(\w+)\s*")


def read_imports(config: Any) -> dict[str, str]:
    """Names that the import statements of a parsed config bind, to dotted modules; refused imports are left out."""
    bound: dict[str, str] = {}
    for _, value in strings_in(config):
        text = value.replace("#", SEPARATOR)  # as MONAI does before anything else
        if text.startswith("$") and is_import(text[1:]) and not judge_import(text[1:]):
            bound.update(imported_names(text[1:]))
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
            if text.startswith("$") and is_import(text[1:].replace("#", SEPARATOR))
        }

    def reached_by(self, text: str) -> str | None:
        """First reference in an absolute config string that reaches a module, or a container of one."""
        for name in referred(text):
            parts = tuple(name.split(SEPARATOR)) if name else ()
            if any(holder[: len(parts)] == parts or parts[:-1] == holder for holder in self._lists):
                return name or "the whole config"
        return None


@dataclass(frozen=True)
class Together:
    """What is known of configs that are laid over each other.

    ``imports``: names bound by their imports, to dotted modules; ``strict``: whether what is usual in MONAI's trainings
    and not done by medseg (to write into the bundle, to fetch weights) forbids their use or is told only.
    """

    imports: Mapping[str, str]
    modules: ModulePlaces
    places: Places
    posts: frozenset[str] = frozenset()  # what their ids ``postprocessing`` refer to
    strict: bool = False

    @classmethod
    def of(cls, configs: Collection[Any], imports: Mapping[str, str], given: Collection[str], strict: bool) -> Together:
        """What the parsed ``configs`` say together; ``given`` are the ids whose values the user gave."""
        named = {
            whole_reference(absolute_text(text, path))
            for config in configs
            for path, text in strings_in(config)
            if path and place_of(path)[-1].startswith(_POST)
        }
        posts = frozenset(name for name in named if name is not None)
        return cls(imports, ModulePlaces(configs), Places(Texts(configs, given)), posts, strict)


def judge_config(file: str, config: Any, together: Together) -> list[Finding]:
    """Findings on one parsed config.

    ``file``: Name of the config inside the bundle, for the findings. ``config``: Its tree, as it is evaluated.
    ``together``: What is known of it and of those it is laid over.
    """
    judge = _ConfigJudge(file, together)
    return [finding for finding in judge.judge(config) if not together.places.texts.is_given(judge.place_of(finding))]


def _hidden(text: str) -> bool:
    """Whether a text holds characters that are invisible, end a line or change the reading order."""
    kinds = {"Cf", "Cc", "Co", "Cs", "Zl", "Zp"}
    return any(unicodedata.category(char) in kinds and char not in "\n\r\t" for char in text)


class _ConfigJudge:
    def __init__(self, file: str, together: Together) -> None:
        self.file = file
        self.modules, self.imports = together.modules, together.imports
        self.places, self.posts, self.strict = together.places, together.posts, together.strict
        self._above: list[str] = []
        self._savers: dict[str, bool] = {}
        self.is_metadata = file == METADATA
        self.infers = Path(file).stem.startswith("inference")
        self.is_config = file.startswith("configs/") and not self.is_metadata

    def _found(self, path: tuple[str, ...], what: str, why: str, severity: Severity = "block") -> Finding:
        return Finding(severity, self.file, SEPARATOR.join(path[self.is_metadata :]), what, why)

    def place_of(self, finding: Finding) -> str:
        """The id that a finding is about, in the configs laid over each other."""
        place = SEPARATOR.join(place_of(finding.place.split(SEPARATOR)))
        return f"{META_ID}{SEPARATOR}{place}" if self.is_metadata else place

    def judge(self, value: Any, path: tuple[str, ...] = (), owner: str = "") -> Iterator[Finding]:
        """``owner`` is the class of the closest component above ``value``."""
        if isinstance(value, Mapping):
            if "_target_" in value:
                yield from self._component(value, path, owner)
                owner = target_of(value)
            self._above.append(owner)
            for key, item in value.items():
                yield from self._key(key, item, path, owner)
                yield from self.judge(item, (*path, key), owner)
            self._above.pop()
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, NUMBERS):
                    yield from self.judge(item, (*path, str(index)), owner)
        elif isinstance(value, str):
            yield from self._text(value, path, owner)

    def _key(self, key: str, value: Any, path: tuple[str, ...], owner: str) -> Iterator[Finding]:
        here = (*path, key)
        yield from self._id(key, path)
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
        elif here in _FOLDERS and self.is_config:
            yield from self._place(here, self.places.root_problem(last, value), owner)
        elif owner or (self.is_config and (last != key or kind_of(last) in ("write", "address"))):
            yield from self._place(here, self.places.problem(last, value, here, owner), owner)

    def _id(self, key: str, path: tuple[str, ...]) -> Iterator[Finding]:
        """MONAI finds an item by its id, whose parts are the keys: none may look like another, or like two."""
        here = (*path, key)
        if not key.isascii() and not self.is_metadata:
            yield self._found(here, f"the id {key!r} holds letters outside ASCII", "it can pass for another id")
        elif key != key.strip() or not key or not key.isprintable():
            yield self._found(here, f"the id {key!r} is empty or holds invisible characters", "it can pass for another")
        elif not is_plain_id(key) or (path and place_of([key]) != [key]):
            yield self._found(here, f"the id {key!r} is no plain name", "MONAI takes it for several ids")
        elif self.is_config and leads_out(key):
            yield self._found(here, f"the id {key!r} is a path", "handlers make names of files of it")

    def _place(self, here: tuple[str, ...], problem: Problem | None, owner: str) -> Iterator[Finding]:
        """A finding on an argument that names a place, a file or a host."""
        if problem is None:
            return
        why = "write below @output_dir, read below @bundle_root; what else is needed the user gives on the command line"
        usual = problem.usual and not self.infers
        if problem.usual and self.infers and owner in SAVERS:
            return  # medseg does not save by them, MONAI's users do, into the bundle
        if not usual or self.strict:
            only: tuple[Command, ...] = ("monai",) if self._is_monais(here, owner) else COMMANDS
            yield replace(self._found(here, problem.what, why), commands=only)
        else:
            yield self._found(here, problem.what, f"medseg train refuses it: {why}", "warn")

    def _is_monais(self, here: tuple[str, ...], owner: str) -> bool:
        """Whether medseg does without an argument: it sets ``bundle_root``, and saves labels by itself."""
        return here == ("bundle_root",) or (self.infers and (owner in SAVERS or here == ("output_dir",)))

    def _target(self, here: tuple[str, ...], value: Any) -> Iterator[Finding]:
        if not isinstance(value, str) or value[:1] in "$@%":
            yield self._found(here, f"a target that is computed: {value!r}", "write the name of the class")
        elif not (is_target(value) or (value.startswith(("torch.", "monai.")) and is_function(value))):
            outside = f"is {SHIPPED}" if is_shipped(value) else "is not on the list of allowed classes"
            yield self._found(here, f"the target {value!r} {outside}", "it would be imported and called")
        elif value.startswith("medseg.") and Path(self.file).stem == "inference":
            yield self._found(here, f"inference needs {value}", "other MONAI tools cannot run this bundle", "warn")

    def _component(self, component: Mapping[str, Any], path: tuple[str, ...], owner: str) -> Iterator[Finding]:
        name = target_of(component)
        if takes_a_place(name) and component.get("_mode_", "default") != "default":
            what = f"{component['_target_']} as a callable"
            yield self._found(path, what, "it imports, writes or reads whatever it is called with")
        if self.infers and name in WRITERS:
            yield self._found(path, f"{name} in a config for inference", "it writes as soon as it is made")
        if name in SAVERS and not self._is_step(path, owner):
            why = "it would save a copy of each patient's image; save in the postprocessing, as a step of its Compose"
            yield self._found(path, f"{name} outside of the postprocessing", why)
        if self.infers and is_file_step(name) and self._is_called(path):
            yield self._found(path, f"{name} as a function", "it would read whatever it is called with")
        if self.infers and is_file_step(name) and self._is_chosen():
            yield self._found(path, f"{name} within a choice among steps", _NOT_DROPPED)
        if (needed := REQUIRED.get(name, "")) and self._lacks(component, needed, path):
            fetches = needed == "pretrained"
            what = f"{name} without {needed} " + ("fetches weights" if fetches else "writes to the current folder")
            yield from self._place(path, Problem(what, usual=True), name)

    def _lacks(self, component: Mapping[str, Any], needed: str, path: tuple[str, ...]) -> bool:
        if needed == "pretrained":
            return needed not in component
        given, writer = (self.places.texts.of_value(component.get(name), path) for name in (needed, "summary_writer"))
        return given in (frozenset(), {""}) and writer == frozenset()

    def _is_chosen(self) -> bool:
        """Whether a component above chooses among steps, or calls one: medseg drops steps from plain lists alone."""
        return any(name.startswith(_CHOOSERS) for name in self._above)

    @staticmethod
    def _is_called(path: tuple[str, ...]) -> bool:
        return any(_CALLED.fullmatch(part) and part != "transform" for part in path)

    def _is_step(self, path: tuple[str, ...], owner: str) -> bool:
        """Whether a path is that of the postprocessing, of what it refers to, or of the steps of its Compose."""
        parts = place_of(path)
        if not parts or parts[0] == "preprocessing":  # which medseg takes by this name where no data set names another
            return False
        within = [SEPARATOR.join(parts[: end + 1]) for end in range(len(parts))]
        inside = any(part.startswith(_POST) for part in parts) or not self.posts.isdisjoint(within)
        step = owner == "Compose" and "transforms" in parts[-2:]
        return inside and (step or parts[-1].startswith(_POST) or within[-1] in self.posts)

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
        elif value is not None and not (isinstance(value, Mapping) and is_reader(value.get("_target_"))):
            yield self._found(here, f"{name} is a {type(value).__name__}", why)

    def _text(self, value: str, path: tuple[str, ...], owner: str) -> Iterator[Finding]:
        if _hidden(value) or (value[:1] in "@%" and not value.isprintable()):
            yield self._found(path, "a text holds invisible characters", "what is shown is not what is read")
        if "__local_refs" in unicodedata.normalize("NFKC", value):
            yield self._found(path, "it names MONAI's own table of items", "write @id: references are judged, not this")
        if value.startswith("%"):
            yield from self._macro(value, path)
        if _RELATIVE.search(value) and not all(_WORD.fullmatch(part) for part in place_of(path)):
            yield self._found(path, "a relative reference below an unusual id", "the id would become part of the code")
        absolute = absolute_text(value, path)
        yield from self._references(absolute, path, owner)
        if value.startswith("$") and is_import(absolute[1:]):
            yield from self._import(absolute[1:], path)
        elif value.startswith("$"):
            yield from self._expression(absolute[1:], path)

    def _references(self, absolute: str, path: tuple[str, ...], owner: str) -> Iterator[Finding]:
        if (reached := self.modules.reached_by(absolute)) is not None:
            yield self._found(path, f"a reference to {reached}, which holds an import", "it would hand out a module")
        if self.infers and (absolute.startswith("$") or self._is_called(path)):
            joined = not self._is_called(path) and _JOINED_REFERENCES.fullmatch(absolute)
            if not joined and (step := next(filter(self.places.is_file_step, referred(absolute)), None)) is not None:
                why = "it would read whatever it is called with"
                yield self._found(path, f"a reference to {step}, which reads images, in an expression", why)
        if self.infers and self._is_chosen() and any(map(self.places.is_file_step, referred(absolute))):
            yield self._found(path, "a reference to a step for files within a choice among steps", _NOT_DROPPED)
        if (saver := self._saver_reached(absolute, path, owner)) is not None:
            why = "a step that saves images may be named by the postprocessing alone"
            yield self._found(path, f"a reference to {saver}, which saves images", why)

    def _import(self, text: str, path: tuple[str, ...]) -> Iterator[Finding]:
        place = place_of(path)
        if self.is_metadata or len(place) > 2 or place[0] not in _IMPORT_LISTS:
            yield self._found(path, f"an import outside of the list imports: {text!r}", "it would hand out a module")
        for problem in judge_import(text):
            yield self._found(path, problem, f"{text!r} would be executed")

    def _expression(self, text: str, path: tuple[str, ...]) -> Iterator[Finding]:
        shown = f"${text}" if len(text) < _SHOWN else f"${text[: _SHOWN - 2]}…"
        for problem in judge_expression(text, self.imports, self.places, infers=self.infers):
            if isinstance(problem, Problem):
                yield from self._place(path, problem, "")
            else:
                yield self._found(path, problem, f"{shown!r} would be executed")

    def _macro(self, value: str, path: tuple[str, ...]) -> Iterator[Finding]:
        if not _PLAIN_MACRO.fullmatch(value[1:]):
            why = "it reads a file of the current directory, unjudged"
            yield self._found(path, f"the macro {value!r} is no plain id", why)
            return
        for copied in self.places.texts.items(absolute_text(value, path)[1:]):
            for _, text in strings_in(copied):
                if is_moved(text):
                    why = "where it leads depends on when MONAI copies it; write the ids in full"
                    yield self._found(path, f"the macro {value!r} copies {text!r}", why)

    def _saver_reached(self, text: str, path: tuple[str, ...], owner: str) -> str | None:
        """First reference to a step that saves images, where it is no step itself."""
        if self._is_step(path, owner) and _JOINED_REFERENCES.fullmatch(text):
            return None
        return next((name for name in referred(text) if self._saves(name, frozenset())), None)

    def _saves(self, place: str, above: frozenset[str]) -> bool:
        """Whether an id holds a step that saves images, or refers to one; an engine keeps its steps to itself."""
        if place not in self._savers:
            items = () if place in above else self.places.texts.items(place)
            self._savers[place] = any(self._holds_saver(item, above | {place}) for item in items)
        return self._savers[place]

    def _holds_saver(self, value: Any, above: frozenset[str]) -> bool:
        if isinstance(value, str):
            return any(self._saves(name, above) for name in referred(absolute_text(value, ())))
        if isinstance(value, list):
            return any(self._holds_saver(part, above) for part in value)
        target = target_of(value) if isinstance(value, Mapping) else ""
        if not isinstance(value, Mapping) or target.endswith(_ENGINES):
            return False
        return target in SAVERS or any(self._holds_saver(part, above) for part in value.values())
