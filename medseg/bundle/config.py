"""The one reader of a bundle's configs: text to a tree of ids, references between them, and evaluating what was judged.

JSON and YAML are read by the rules of MONAI's ``ConfigParser``: ``@id`` and ``%id`` refer to other items, ``a#b`` and
``a::b`` name the same place, ``+a`` extends what is there, the keys of a later config lie over those of an earlier one.
Nothing is evaluated but by :class:`Parsed`, which is given the very tree that the audit has judged.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medseg.bundle.text_limits import check_text, read_config_bytes, shallow, whole_number
from medseg.errors import BundleError, MedsegError, MissingDependency

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

SEPARATOR = "::"
SUFFIXES = (".json", ".yaml", ".yml")
"""What configs may end in; of several files of one name the first counts."""
META_ID = "_meta_"
"""Where MONAI mounts the metadata in a config."""
NUMBERS = (int, float, type(None))
"""Values that hold no text."""
ABSENT: Any = object()
"""What :func:`item_at` gives where nothing is."""

RELATIVE = re.compile(rf"(?:@|%){SEPARATOR}+")
_REFERENCE = re.compile(rf"@(\w*(?:{SEPARATOR}\w*)*)")
_PLAIN_ID = re.compile(rf"\+?\w+((#|{SEPARATOR})\w+)*", re.ASCII)
_WHOLE_REFERENCE = re.compile(r"[@%](\w+(?:::\w+)*)")


class DuplicateKey(ValueError):
    """An object states one key twice; readers disagree on which counts."""


class _PlainYaml(yaml.SafeLoader):
    """YAML as far as JSON goes. MONAI reads the same of it, as it uses the same loader."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it holds an alias, by which a few lines grow without end; write the part out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        _unique([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def config_file(folder: Path, name: str) -> Path | None:
    """The file of a bundle's config ``name`` (``"inference"``), JSON before YAML; None if there is none."""
    files = (folder / "configs" / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def parse_config(data: bytes, name: str) -> Any:
    """Parse strict JSON or plain YAML, by the suffix of ``name``.

    Raises ``DuplicateKey`` if an object holds the same key twice, also when written with the two separators of config
    ids; ``ValueError`` if it is neither, too large, nested too deeply, not UTF-8, or holds what JSON has no word for.
    """
    suffix = Path(name).suffix.lower()
    check_text(data, suffix)
    try:
        if suffix == ".json":
            return shallow(json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=whole_number))
        return shallow(_plain(yaml.load(data.decode("utf-8"), _PlainYaml)))  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read one config as plain data; expressions stay strings.

    Raises ``BundleError`` if it cannot be read, or is no object.
    """
    try:
        value = parse_config(read_config_bytes(path), path.name)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in pairs:
        if not isinstance(key, str):
            raise ValueError(f"the key {key!r} is no text; quote it")  # noqa: TRY004  whatever is wrong with a config
        plain = key.replace("#", SEPARATOR).lstrip("+")
        if plain in seen:
            raise DuplicateKey(f"the key {key!r} stands twice in one object")
        seen.add(plain)
    return dict(pairs)


def _plain(value: Any) -> Any:
    """Refuse what YAML reads as something that JSON cannot hold, such as a date."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _plain(part)
    if not isinstance(value, dict | list | str | int | float | None):
        raise ValueError(f"{value!r} is read as a {type(value).__name__}; quote it")  # noqa: TRY004  as above
    return value


def laid_out(*configs: Mapping[str, Any]) -> dict[str, Any]:
    """Configs laid over each other, as ``python -m monai.bundle run --config_file "[first,second]"`` does.

    Keys such as ``part#key`` change a part; ``+part`` extends an object or a list. Raises ``BundleError`` if a key
    changes a part that is not there, or extends one by another kind.
    """
    result: dict[str, Any] = {}
    for config in configs:
        for key, value in config.items():
            _lay(result, key, copy.deepcopy(value))
    return result


def is_plain_id(key: str) -> bool:
    """Whether a key that names a part of a config is read as the same id by MONAI and here."""
    return _PLAIN_ID.fullmatch(key) is not None or not (SEPARATOR in key or "#" in key or key.startswith("+"))


def _lay(result: dict[str, Any], key: str, value: Any) -> None:
    if not is_plain_id(key):
        raise BundleError(f"the key {key!r} is no plain id; write words joined by '::'")
    *above, last = key.removeprefix("+").replace("#", SEPARATOR).split(SEPARATOR)
    parent = item_at(result, SEPARATOR.join(above))
    here = item_at(parent, last)
    if key.startswith("+") and here is not ABSENT:
        if isinstance(here, dict) and isinstance(value, dict):
            here.update(value)
        elif isinstance(here, list) and isinstance(value, list):
            here.extend(value)
        else:
            raise BundleError(f"the key {key!r} extends a {type(here).__name__} by a {type(value).__name__}")
    elif isinstance(parent, list) and here is not ABSENT:
        parent[int(last)] = value
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise BundleError(f"the key {key!r} lays something over a part that the config lacks; correct the key")


def strings_in(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string value of a parsed config with its path."""
    if isinstance(config, str):
        yield path, config
    for key, value in _children(config):
        if not isinstance(value, NUMBERS):  # of which a calibration has tens of thousands
            yield from strings_in(value, (*path, key))


def ids(config: Any, separator: str = SEPARATOR, above: str = "") -> Iterator[str]:
    """Ids of everything in a config, at all depths."""
    for key, value in _children(config):
        yield f"{above}{key}"
        yield from ids(value, separator, f"{above}{key}{separator}")


def _children(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return ((str(index), part) for index, part in enumerate(value)) if isinstance(value, list) else ()


def place_of(path: Iterable[str]) -> list[str]:
    """Config id of a path, in parts; a key of an overlay such as ``train#dataset`` counts as two, ``+`` not at all."""
    return [part for key in path for part in key.lstrip("+").replace("#", SEPARATOR).split(SEPARATOR)]


def item_at(config: Any, place: str) -> Any:
    """What stands at an id (either separator), or :data:`ABSENT`; the empty id is the whole config."""
    for part in place.replace("#", SEPARATOR).split(SEPARATOR) if place else ():
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return ABSENT
    return config


def absolute_text(text: str, path: Sequence[str]) -> str:
    """A config string with ``#`` as ``::`` and relative ids made absolute, as MONAI does before anything else."""
    text = text.replace("#", SEPARATOR)
    here = place_of(path)
    for prefix in sorted(set(RELATIVE.findall(text)), reverse=True):
        kept = here[: max(0, len(here) - prefix.count(SEPARATOR))]
        text = text.replace(prefix, prefix[0] + "".join(part + SEPARATOR for part in kept))
    return text


def referred(text: str) -> list[str]:
    """Ids that an absolute config string refers to."""
    if text.startswith("$"):
        return _REFERENCE.findall(text)
    if text.startswith("@") and _REFERENCE.fullmatch(text):
        return [text[1:]]
    return [text[1:]] if text.startswith("%") else []


def follow(config: Mapping[str, Any], place: str) -> str:
    """The id at which a chain of plain references such as ``"@postprocessing"`` ends."""
    seen: set[str] = set()
    while place not in seen:
        seen.add(place)
        value = item_at(config, place)
        text = absolute_text(value, place.split(SEPARATOR)) if isinstance(value, str) else ""
        if (found := _WHOLE_REFERENCE.fullmatch(text)) is None:
            break
        place = found[1]
    return place


def visited(config: Mapping[str, Any], start: str) -> Iterator[tuple[str, Any]]:
    """Ids and contents of all at or below ``start``, or referred to from there, in the order of the text."""
    waiting, seen = [start], set[str]()  # the next at the end
    while waiting:
        place = waiting.pop()
        value = ABSENT if place in seen else item_at(config, place)
        seen.add(place)
        if value is ABSENT:
            continue
        yield place, value
        below = [f"{place}{SEPARATOR}{key}" for key, _ in _children(value)]
        waiting += reversed(referred(absolute_text(value, place.split(SEPARATOR))) if isinstance(value, str) else below)


def reached(config: Mapping[str, Any], start: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Ids and contents of all components at or below ``start``, or referred to from there, in the order of the text."""
    for place, value in visited(config, start):
        if isinstance(value, Mapping) and "_target_" in value:
            yield place, value


def steps(config: Mapping[str, Any], start: str) -> list[Mapping[str, Any]]:
    """The components that :func:`reached` finds and that are switched on, as far as the text tells."""
    return [part for _, part in reached(config, start) if not _is_off(config, part.get("_disabled_", False))]


def _is_off(config: Mapping[str, Any], value: Any) -> bool:
    """What ``_disabled_`` says by words, references, ``$True`` and ``$not …``."""
    if isinstance(value, str) and value.startswith("@"):
        value = item_at(config, follow(config, value[1:].replace("#", SEPARATOR)))
    if isinstance(value, str):
        return value.lower().replace(" ", "") in {"true", "$true", "$notfalse", "$1"}
    return bool(value) and value is not ABSENT


def target_of(component: Mapping[str, Any]) -> str:
    """Last part of a component's class name."""
    return str(component.get("_target_", "")).rpartition(".")[2]


def spelled_out(config: Mapping[str, Any], value: Any, without: Collection[str] = (), depth: int = 0) -> Any:
    """A part of a config with what its references name put in their place, less the keys ``without``."""
    if isinstance(value, Mapping):
        return {key: spelled_out(config, part, without, depth) for key, part in value.items() if key not in without}
    if isinstance(value, list):
        return [spelled_out(config, part, without, depth) for part in value]
    named = _WHOLE_REFERENCE.fullmatch(value.replace("#", SEPARATOR)) if isinstance(value, str) else None
    found = ABSENT if named is None or depth > 20 else item_at(config, named[1])
    return value if found is ABSENT else spelled_out(config, found, without, depth + 1)


def parts_of(config: Mapping[str, Any], places: Iterable[str]) -> dict[str, Any]:
    """What stands at the given ids and, in turn, at every id that it names; nothing beside these, and no imports."""
    reduced: dict[str, Any] = {}
    waiting, done = list(places), set[str]()
    while waiting:
        place = waiting.pop()
        if not place:
            raise BundleError("a part of the config refers to the whole of it by '@'; name what it needs")
        value = item_at(config, place)
        if place in done or value is ABSENT or place.partition(SEPARATOR)[0] == "imports":
            continue
        done.add(place)
        _graft(reduced, config, place.split(SEPARATOR))
        for where, text in strings_in(value, tuple(place.split(SEPARATOR))):
            waiting += referred(absolute_text(text, where))
    return reduced


def _graft(reduced: Any, config: Any, parts: Sequence[str]) -> None:
    """Copy one branch; other items of a list on its way become None."""
    key: Any = int(parts[0]) if isinstance(config, list) else parts[0]
    if isinstance(reduced, list):
        reduced.extend([None] * (len(config) - len(reduced)))
    if len(parts) == 1:
        reduced[key] = copy.deepcopy(config[key])
        return
    if (reduced[key] if isinstance(reduced, list) else reduced.get(key)) is None:
        reduced[key] = [] if isinstance(config[key], list) else {}
    _graft(reduced[key], config[key], parts[1:])


class Parsed:
    """A config that MONAI's own parser resolves, id by id.

    ``config``: What the audit has judged: it may be evaluated. ``where``: Which file of which bundle, for messages.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self._parser: ConfigParser | None = None

    def afresh(self) -> Parsed:
        """The same config, of which nothing is evaluated yet: components are made again."""
        return Parsed(self._config, self._where)

    def get(self, place: str, default: Any = None) -> Any:
        """What the id ``place`` stands for, instantiated and evaluated; ``default`` where nothing stands.

        Raises ``BundleError`` if MONAI cannot evaluate it; ``MissingDependency`` if a package that it needs is not
        installed.
        """
        if item_at(self._config, place) is ABSENT:
            return default
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns about parsing and about defaults: the author's concern
            try:
                if self._parser is None:
                    from monai.bundle import ConfigParser

                    self._parser = ConfigParser(copy.deepcopy(dict(self._config)))
                return self._parser.get_parsed_content(place)
            except MedsegError:
                raise
            except Exception as error:
                own = next((cause for cause in _causes(error) if isinstance(cause, MedsegError)), None)
                if own is not None:
                    raise own from error
                where = f"{place} in {self._where}"
                if (missing := missing_package(error, where)) is not None:
                    raise missing from error
                raise BundleError(f"{where} cannot be evaluated: {first_cause(error)}; correct the config") from error

    def enabled(self, place: str) -> bool:
        """Whether the component at ``place`` is switched on, by what ``_disabled_`` is once it is evaluated."""
        value = self.get(f"{place}::_disabled_", default=False)
        return value.lower().strip() != "true" if isinstance(value, str) else not value


_PACKAGES = {"skimage": "scikit-image", "cucim": "cucim-cu12", "cv2": "opencv-python", "PIL": "pillow"}
_NOT_THERE = tuple(map(re.compile, (r"[Nn]o module named '(\w+)", r"`(\w+)`", r"(?:from|import) (\w+)")))
_REQUIRED = re.compile(r"^(\w+)(\.\w+)* required\.$", re.IGNORECASE)
"""How MONAI's transforms say that an optional package is not there."""


def missing_package(error: BaseException, purpose: str) -> MissingDependency | None:
    """The error to raise if a package that is not installed is behind ``error``, else None."""
    for cause in _causes(error):
        package = _package_of(cause).partition(".")[0]
        if package:
            return MissingDependency(_PACKAGES.get(package, package), None, purpose)
    return None


def _package_of(error: BaseException) -> str:
    """The package that an error says is missing; empty if it says nothing of the kind."""
    if isinstance(error, ImportError):
        matches = (pattern.search(str(error)) for pattern in _NOT_THERE)
        return error.name or next((found[1] for found in matches if found), "")
    said = str(error) if isinstance(error, RuntimeError) else ""
    return said.partition(" ")[0].lower() if _REQUIRED.match(said) else ""


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def first_cause(error: BaseException) -> str:
    """The first line of what went wrong first, with its kind."""
    first = _causes(error)[-1]
    return f"{type(first).__name__}: {str(first).splitlines()[0] if str(first) else ''}"
