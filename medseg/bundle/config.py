"""Configs of a bundle as MONAI reads them: references, what runs, and evaluating what was judged.

References between config items (``@id``, ``%id``), resolved as MONAI does, and which of them reach a module.

MONAI replaces an import statement by the module it imports. An expression that refers to such an item would hold the
module itself, and ``.replace`` of a string is harmless while that of ``os`` is not: such references are refused.

What ``python -m monai.bundle run`` runs of an ``inference.json``, found in its text without evaluating anything.

The run starts at ``run`` and comes to an evaluator. What that evaluator is given counts: its post-processing, its
inferer, its network, the data set behind its loader, and the ``CheckpointLoader``s that act before it begins. Usually
these are the ids of the same names; a config may name others.

Evaluate parts of an audited config as MONAI does, with errors that say what is wrong with the bundle.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medseg.bundle.audit_expressions import is_import
from medseg.errors import BundleError, MedsegError, MissingDependency

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

SEPARATOR = "::"
_RELATIVE = re.compile(rf"(?:@|%){SEPARATOR}+")
_REFERENCE = re.compile(rf"@(\w*(?:{SEPARATOR}\w*)*)")


def strings_in(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string value of a parsed config with its path."""
    if isinstance(config, str):
        yield path, config
    elif isinstance(config, Mapping):
        for key, value in config.items():
            yield from strings_in(value, (*path, str(key)))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from strings_in(value, (*path, str(index)))


def place_of(path: Iterable[str]) -> list[str]:
    """Config id of a path, in parts; a key of an overlay such as ``train#dataset`` counts as two, ``+`` not at all."""
    return [part for key in path for part in key.lstrip("+").replace("#", SEPARATOR).split(SEPARATOR)]


def absolute_text(text: str, path: tuple[str, ...]) -> str:
    """A config string with ``#`` as ``::`` and relative ids made absolute, as MONAI does before anything else."""
    text = text.replace("#", SEPARATOR)
    here = place_of(path)
    for prefix in sorted(set(_RELATIVE.findall(text)), reverse=True):
        levels = prefix.count(SEPARATOR)
        kept = here[: max(0, len(here) - levels)]
        text = text.replace(prefix, prefix[0] + "".join(part + SEPARATOR for part in kept))
    return text


class ModulePlaces:
    """Where import statements stand in a bundle's configs.

    Parameters
    ----------
    configs
        All parsed configs; they are laid over each other, so that their imports count together.
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


def referred(text: str) -> list[str]:
    """Ids that an absolute config string refers to."""
    if text.startswith("$"):
        return _REFERENCE.findall(text)
    if text.startswith("@") and _REFERENCE.fullmatch(text):
        return [text[1:]]
    return [text[1:]] if text.startswith("%") else []


ABSENT: Any = object()
"""What :func:`item_at` gives where nothing is."""

_ENTRIES = ("run", "inference", "evaluating", "evaluate")
_WHOLE_REFERENCE = re.compile(r"[@%](\w+(?:::\w+)*)")
_ID = rf"\w+(?:{SEPARATOR}\w+)*"
_SAME_NETWORK = re.compile(rf"\$\s*@({_ID})(?:\.(?:to|eval|float|cpu|cuda)\((?:@{_ID}|'[\w:]*'|\"[\w:]*\"|)\))*\s*")
"""A network that is moved or set to evaluation, and otherwise as it is defined."""


_NETWORK_CALL = re.compile(r"@network(?:_def)?\.(\w+)")
_HARMLESS_CALLS = frozenset({"to", "eval", "cpu", "cuda", "float", "parameters", "modules", "state_dict"})


@dataclass(frozen=True)
class Pipeline:
    """Where the parts of a run stand in a config, as ids such as ``evaluator::postprocessing``.

    Parameters
    ----------
    preprocessing, inferer, postprocessing, network
        Their ids; None for an inferer or a post-processing that the evaluator does without.
    loaders
        The ``CheckpointLoader``s, in the order in which they act.
    evaluator
        Id of the evaluator; None if the config has none.
    notes
        What medseg does although the config does not say so.
    """

    preprocessing: str
    inferer: str | None
    postprocessing: str | None
    network: str
    loaders: tuple[str, ...] = ()
    evaluator: str | None = None
    notes: tuple[str, ...] = ()


def laid_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose overlaying keys (``part#key``, ``+part``) are laid over the others, as MONAI does on reading."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        place = place_of([key])
        above = item_at(result, SEPARATOR.join(place[:-1])) if len(place) > 1 else result
        here = item_at(result, SEPARATOR.join(place))
        if key.startswith("+") and isinstance(here, dict) and isinstance(value, Mapping):
            here.update(copy.deepcopy(value))
        elif key.startswith("+") and isinstance(here, list) and isinstance(value, list):
            here.extend(copy.deepcopy(value))
        elif isinstance(above, list) and place[-1].isdigit() and int(place[-1]) < len(above):
            above[int(place[-1])] = copy.deepcopy(value)
        elif isinstance(above, dict):
            above[place[-1]] = copy.deepcopy(value)
        else:
            raise BundleError(f"the key {key!r} lays something over a part that the config lacks; correct the key")
    return result


def item_at(config: Any, place: str) -> Any:
    """What stands at an id, or :data:`ABSENT`; the empty id is the whole config."""
    for part in place.split(SEPARATOR) if place else ():
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return ABSENT
    return config


def follow(config: Mapping[str, Any], place: str) -> str:
    """The id at which a chain of plain references such as ``"@postprocessing"`` ends."""
    seen: set[str] = set()
    while place not in seen:
        seen.add(place)
        value = item_at(config, place)
        found = _WHOLE_REFERENCE.fullmatch(_absolute(value, place)) if isinstance(value, str) else None
        if found is None:
            break
        place = found[1]
    return place


def reached(config: Mapping[str, Any], start: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Ids and contents of all components at or below ``start``, or referred to from there, in the order of the text."""
    waiting, seen = [start], set[str]()
    while waiting:
        place = waiting.pop(0)
        value = ABSENT if place in seen else item_at(config, place)
        seen.add(place)
        below: list[str] = []
        if isinstance(value, Mapping):
            if "_target_" in value:
                yield place, value
            below = [f"{place}{SEPARATOR}{key}" for key in value]
        elif isinstance(value, list):
            below = [f"{place}{SEPARATOR}{index}" for index in range(len(value))]
        elif isinstance(value, str):
            below = referred(_absolute(value, place))
        waiting = below + waiting


def read_pipeline(config: Mapping[str, Any], bundle: str) -> Pipeline:
    """Find the parts of a run in a config that :func:`laid_out` gave.

    Parameters
    ----------
    config
        The whole ``inference.json``.
    bundle
        The bundle's name, for messages.

    Raises
    ------
    BundleError
        If the evaluator does something that medseg does not do.
    """
    _refuse_changes_of_the_network(config, bundle)
    evaluator = _evaluator(config)
    if evaluator is None:
        post = "postprocessing" if "postprocessing" in config else None
        inferer = "inferer" if "inferer" in config else None
        return Pipeline("preprocessing", inferer, post, "network_def", _loaders(config, None))
    notes = _check_evaluator(config, evaluator, bundle)
    given = item_at(config, evaluator)
    post = follow(config, f"{evaluator}::postprocessing") if given.get("postprocessing") is not None else None
    if post is None and "postprocessing" in config:
        post = "postprocessing"
        notes.append("the evaluator names no postprocessing; the one at the id postprocessing is used")
    loaders = _loaders(config, evaluator)
    if not loaders:
        notes.append("no CheckpointLoader acts on the evaluator; the weights in models/ are used")
    return Pipeline(
        preprocessing=_preprocessing(config, evaluator),
        inferer=follow(config, f"{evaluator}::inferer") if given.get("inferer") is not None else None,
        postprocessing=post,
        network=_network(config, evaluator, bundle),
        loaders=loaders,
        evaluator=evaluator,
        notes=tuple(notes),
    )


def target_of(component: Mapping[str, Any]) -> str:
    """Last part of a component's class name."""
    return str(component.get("_target_", "")).rpartition(".")[2]


def _absolute(text: str, place: str) -> str:
    return absolute_text(text, tuple(place.split(SEPARATOR)))


def _refuse_changes_of_the_network(config: Mapping[str, Any], bundle: str) -> None:
    """Weights come from loaders alone; an expression that fills or changes the network is none."""
    for entry in ("initialize", *_ENTRIES):
        for path, text in strings_in(config.get(entry), (entry,)):
            calls = set(_NETWORK_CALL.findall(text)) - _HARMLESS_CALLS
            if calls or "load_state_dict" in text or "copy_model_state" in text:
                raise BundleError(
                    f"{SEPARATOR.join(path)} in inference.json of {bundle} changes the network by {text!r}; medseg"
                    " reads weights from a CheckpointLoader and changes nothing else"
                )


def _evaluator(config: Mapping[str, Any]) -> str | None:
    entry = next((name for name in _ENTRIES if name in config), None)
    places = [place for place, part in reached(config, entry or "") if target_of(part).endswith("Evaluator")]
    if places:
        return places[0]
    return "evaluator" if isinstance(config.get("evaluator"), Mapping) else None


def _check_evaluator(config: Mapping[str, Any], evaluator: str, bundle: str) -> list[str]:
    """Refuse what would give another result; notes on the rest."""
    given = item_at(config, evaluator)
    where = f"the evaluator in inference.json of {bundle}"
    if target_of(given) != "SupervisedEvaluator":
        raise BundleError(f"{where} is {target_of(given)}, expected SupervisedEvaluator; medseg runs no other")
    for name, plain in (("prepare_batch", "PrepareBatchDefault"), ("iteration_update", "")):
        value = item_at(config, follow(config, f"{evaluator}::{name}"))
        if value is ABSENT or value is None or (isinstance(value, Mapping) and target_of(value) == plain):
            continue
        raise BundleError(f"{where} has its own {name}, which medseg does not run; label with MONAI itself")
    if given.get("mode", "eval") not in ("eval", "$monai.utils.ForwardMode.EVAL"):
        raise BundleError(f"{where} runs in mode {given['mode']!r}, expected eval; medseg labels in no other mode")
    if given.get("decollate", True) is not True:
        raise BundleError(f"{where} has decollate {given['decollate']!r}, expected true; leave it out")
    for place, part in reached(config, f"{evaluator}::val_handlers"):
        if target_of(part) == "PostProcessing":
            raise BundleError(
                f"{place} in inference.json of {bundle} is a PostProcessing handler, which medseg does not run; move"
                " its transforms into the evaluator's postprocessing"
            )
    amp = given.get("amp", False)
    return [] if amp is False else ["the evaluator's amp counts on CUDA only; --precision says how medseg computes"]


def _preprocessing(config: Mapping[str, Any], evaluator: str) -> str:
    """The transforms of the data set that the evaluator's loader reads."""
    place = f"{evaluator}::val_data_loader"
    for name in ("dataset", "transform"):
        place = f"{follow(config, place)}::{name}"
    if item_at(config, place) in (ABSENT, None):
        return "preprocessing"
    return follow(config, place)


def _network(config: Mapping[str, Any], evaluator: str, bundle: str) -> str:
    """The definition behind the evaluator's network."""
    place, seen = f"{evaluator}::network", set[str]()
    if item_at(config, place) is ABSENT:
        return "network_def"
    while place not in seen:
        seen.add(place)
        place = follow(config, place)
        value = item_at(config, place)
        if isinstance(value, Mapping):
            return place
        text = _absolute(value, place) if isinstance(value, str) else repr(value)
        found = _SAME_NETWORK.fullmatch(text)
        if found is None:
            raise BundleError(
                f"{place} in inference.json of {bundle} is {text!r}; medseg reads a network as it is defined, moved by"
                " .to() or set by .eval(), and nothing else: define it under network_def"
            )
        place = found[1]
    raise BundleError(f"the evaluator's network in inference.json of {bundle} refers to itself")


def _loaders(config: Mapping[str, Any], evaluator: str | None) -> tuple[str, ...]:
    """Loaders in ``initialize`` act first, then those that wait for the evaluator's start."""
    starts = ["initialize", f"{evaluator}::val_handlers", *_ENTRIES] if evaluator else ["initialize", "handlers"]
    found = [
        place for start in starts for place, part in reached(config, start) if target_of(part) == "CheckpointLoader"
    ]
    return tuple(dict.fromkeys(found))


_PACKAGES = {"skimage": "scikit-image", "cucim": "cucim-cu12", "cv2": "opencv-python", "PIL": "pillow"}
_NOT_THERE = tuple(map(re.compile, (r"[Nn]o module named '(\w+)", r"`(\w+)`", r"(?:from|import) (\w+)")))
_REQUIRED = re.compile(r"^(\w+)(\.\w+)* required\.$", re.IGNORECASE)
"""How MONAI's transforms say that an optional package is not there."""


class Parsed:
    """A config that MONAI's own parser resolves, id by id.

    Parameters
    ----------
    config
        What :meth:`medseg.bundle.Bundle.runnable_config` gave: it may be evaluated.
    bundle
        The bundle's name, for messages.
    """

    def __init__(self, config: Mapping[str, Any], bundle: str) -> None:
        self._config, self._bundle = config, bundle
        self._parser: ConfigParser | None = None

    def get(self, place: str, default: Any = None) -> Any:
        """What the id ``place`` stands for, instantiated and evaluated; ``default`` where nothing stands.

        Raises
        ------
        BundleError
            If MONAI cannot evaluate it.
        MissingDependency
            If a package that it needs is not installed.
        """
        if item_at(self._config, place) is ABSENT:
            return default
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns about parsing and about defaults: the author's concern
            try:
                return self._prepared().get_parsed_content(place)
            except MedsegError:
                raise
            except Exception as error:
                missing = missing_package(error, f"{place} of {self._bundle}")
                if missing is not None:
                    raise missing from error
                where = f"{place} in inference.json of {self._bundle}"
                raise BundleError(f"{where} cannot be evaluated: {first_cause(error)}; correct the config") from error

    def enabled(self, place: str) -> bool:
        """Whether the component at ``place`` is switched on, by what ``_disabled_`` is once it is evaluated."""
        value = self.get(f"{place}::_disabled_", default=False)
        return value.lower().strip() != "true" if isinstance(value, str) else not value

    def _prepared(self) -> ConfigParser:
        if self._parser is None:
            from monai.bundle import ConfigParser

            self._parser = ConfigParser(dict(self._config))
        return self._parser


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
        said = (pattern.search(str(error)) for pattern in _NOT_THERE)
        return error.name or next((found[1] for found in said if found), "")
    if isinstance(error, RuntimeError) and _REQUIRED.match(str(error)):
        return str(error).partition(" ")[0].lower()
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def first_cause(error: BaseException) -> str:
    """The first line of what went wrong first, with its kind."""
    last = list(_causes(error))[-1]
    return f"{type(last).__name__}: {str(last).splitlines()[0] if str(last) else ''}"
