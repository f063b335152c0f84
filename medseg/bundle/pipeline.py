"""What ``python -m monai.bundle run`` runs of an ``inference.json``, found in its text without evaluating anything.

The run starts at ``run`` and comes to an evaluator. What that evaluator is given counts: its post-processing, its
inferer, its network, the data set behind its loader, and the ``CheckpointLoader``s that act before it begins. Usually
these are the ids of the same names; a config may name others.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medseg.bundle.references import SEPARATOR, absolute_text, place_of, referred
from medseg.errors import BundleError

__all__ = ["ABSENT", "Pipeline", "follow", "item_at", "laid_out", "reached", "read_pipeline"]

ABSENT: Any = object()
"""What :func:`item_at` gives where nothing is."""

_ENTRIES = ("run", "inference", "evaluating", "evaluate")
_WHOLE_REFERENCE = re.compile(r"[@%](\w+(?:::\w+)*)")
_ID = rf"\w+(?:{SEPARATOR}\w+)*"
_SAME_NETWORK = re.compile(rf"\$\s*@({_ID})(?:\.(?:to|eval|float|cpu|cuda)\((?:@{_ID}|'[\w:]*'|\"[\w:]*\"|)\))*\s*")
"""A network that is moved or set to evaluation, and otherwise as it is defined."""


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
    return Pipeline(
        preprocessing=_preprocessing(config, evaluator),
        inferer=follow(config, f"{evaluator}::inferer") if given.get("inferer") is not None else None,
        postprocessing=post,
        network=_network(config, evaluator, bundle),
        loaders=_loaders(config, evaluator),
        evaluator=evaluator,
        notes=tuple(notes),
    )


def target_of(component: Mapping[str, Any]) -> str:
    """Last part of a component's class name."""
    return str(component.get("_target_", "")).rpartition(".")[2]


def _absolute(text: str, place: str) -> str:
    return absolute_text(text, tuple(place.split(SEPARATOR)))


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
