"""What runs of a bundle, found in the text of its configs without evaluating anything.

The run of an ``inference.json`` starts at ``run`` and comes to an evaluator. What that evaluator is given counts: its
post-processing, its inferer, its network, the data set behind its loader, and the ``CheckpointLoader``s that act before
it begins. Usually these are the ids of the same names; a config may name others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.bundle.config import ABSENT, SEPARATOR, absolute_text, follow, item_at, reached, strings_in, target_of
from medseg.errors import BundleError

_ENTRIES = ("run", "inference", "evaluating", "evaluate")
_ID = rf"\w+(?:{SEPARATOR}\w+)*"
_STACK = re.compile(r"\$torch\.nn\.Sequential\(\*@\w+\)")
"""A definition, too: ``Sequential`` takes its layers by position, which a ``_target_`` cannot give it."""
_SAME_NETWORK = re.compile(rf"\$\s*@({_ID})(?:\.(?:to|eval|float|cpu|cuda)\((?:@{_ID}|'[\w:]*'|\"[\w:]*\"|)\))*\s*")
"""A network that is moved or set to evaluation, and otherwise as it is defined."""
_NETWORK_CALL = re.compile(r"@network(?:_def)?\.(\w+)")
_HARMLESS_CALLS = frozenset({"to", "eval", "cpu", "cuda", "float", "parameters", "modules", "state_dict"})
_TRAINER = "train::trainer"


@dataclass(frozen=True)
class Pipeline:
    """Where the parts of a run stand in a config, as ids such as ``evaluator::postprocessing``."""

    # preprocessing, inferer, postprocessing, network: their ids; None for an inferer or a post-processing that the
    # evaluator does without
    preprocessing: str
    inferer: str | None
    postprocessing: str | None
    network: str
    loaders: tuple[str, ...] = ()  # the ``CheckpointLoader``s, in the order in which they act
    notes: tuple[str, ...] = ()  # what medseg does although the config does not say so


def read_pipeline(config: Mapping[str, Any], where: str) -> Pipeline:
    """Find the parts of a run in a config that :func:`~medseg.bundle.config.laid_out` gave.

    ``config``: The whole ``inference.json``. ``where``: Which file of which bundle, for messages. Raises
    ``BundleError`` if the evaluator does something that medseg does not do.
    """
    _refuse_changes_of_the_network(config, where)
    entry = next((name for name in _ENTRIES if name in config), "")
    places = [place for place, part in reached(config, entry) if target_of(part).endswith("Evaluator")]
    evaluator = places[0] if places else "evaluator"
    if not places and not isinstance(config.get("evaluator"), Mapping):
        post = "postprocessing" if "postprocessing" in config else None
        inferer = "inferer" if "inferer" in config else None
        return Pipeline("preprocessing", inferer, post, "network_def", _loaders(config, None))
    notes = _check_evaluator(config, evaluator, where)
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
        network=_network(config, evaluator, where),
        loaders=loaders,
        notes=tuple(notes),
    )


def _refuse_changes_of_the_network(config: Mapping[str, Any], where: str) -> None:
    """Weights come from loaders alone; an expression that fills or changes the network is none."""
    for entry in ("initialize", *_ENTRIES):
        for path, text in strings_in(config.get(entry), (entry,)):
            calls = set(_NETWORK_CALL.findall(text)) - _HARMLESS_CALLS
            if calls or "load_state_dict" in text or "copy_model_state" in text:
                raise BundleError(
                    f"{SEPARATOR.join(path)} in {where} changes the network by {text!r}; medseg reads weights from a"
                    " CheckpointLoader and changes nothing else"
                )


def _check_evaluator(config: Mapping[str, Any], evaluator: str, where: str) -> list[str]:
    """Refuse what would give another result; notes on the rest."""
    given = item_at(config, evaluator)
    here = f"the evaluator in {where}"
    if target_of(given) != "SupervisedEvaluator":
        raise BundleError(f"{here} is {target_of(given)}, expected SupervisedEvaluator; medseg runs no other")
    for name, plain in (("prepare_batch", "PrepareBatchDefault"), ("iteration_update", "")):
        value = item_at(config, follow(config, f"{evaluator}::{name}"))
        if value is ABSENT or value is None or (isinstance(value, Mapping) and target_of(value) == plain):
            continue
        raise BundleError(f"{here} has its own {name}, which medseg does not run; label with MONAI itself")
    if given.get("mode", "eval") not in ("eval", "$monai.utils.ForwardMode.EVAL"):
        raise BundleError(f"{here} runs in mode {given['mode']!r}, expected eval; medseg labels in no other mode")
    if given.get("decollate", True) is not True:
        raise BundleError(f"{here} has decollate {given['decollate']!r}, expected true; leave it out")
    for place, part in reached(config, f"{evaluator}::val_handlers"):
        if target_of(part) == "PostProcessing":
            what = f"{place} in {where} is a PostProcessing handler, which medseg does not run"
            raise BundleError(f"{what}; move its transforms into the evaluator's postprocessing")
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


def _network(config: Mapping[str, Any], evaluator: str, where: str) -> str:
    """The definition behind the evaluator's network."""
    place, seen = f"{evaluator}::network", set[str]()
    if item_at(config, place) is ABSENT:
        return "network_def"
    while place not in seen:
        seen.add(place)
        place = follow(config, place)
        value = item_at(config, place)
        if isinstance(value, Mapping) or (isinstance(value, str) and _STACK.fullmatch(value)):
            return place
        text = absolute_text(value, place.split(SEPARATOR)) if isinstance(value, str) else repr(value)
        found = _SAME_NETWORK.fullmatch(text)
        if found is None:
            raise BundleError(
                f"{place} in {where} is {text!r}; medseg reads a network as it is defined, moved by .to() or set by"
                " .eval(), and nothing else: define it under network_def"
            )
        place = found[1]
    raise BundleError(f"the evaluator's network in {where} refers to itself")


def _loaders(config: Mapping[str, Any], evaluator: str | None) -> tuple[str, ...]:
    """Loaders in ``initialize`` act first, then those that wait for the evaluator's start."""
    starts = ["initialize", f"{evaluator}::val_handlers", *_ENTRIES] if evaluator else ["initialize", "handlers"]
    found = [
        place for start in starts for place, part in reached(config, start) if target_of(part) == "CheckpointLoader"
    ]
    return tuple(dict.fromkeys(found))


def _trainer(config: Mapping[str, Any]) -> str:
    trainer = item_at(config, follow(config, _TRAINER))
    return str(trainer.get("_target_", "")) if isinstance(trainer, Mapping) else ""


def _is_ours(target: str) -> bool:
    """Whether a trainer is medseg's own, or one of the bundle's scripts, which is asked when it is built."""
    return "." in target and not target.startswith(("monai.", "ignite."))


def trains_by_medseg(configs: Mapping[str, Any]) -> bool:
    """Whether ``medseg train`` would begin with one of a bundle's configs, given by their paths in it."""
    trainings = [
        config for name, config in configs.items() if Path(name).stem == "train" and isinstance(config, Mapping)
    ]
    return any(_is_ours(_trainer(config)) for config in trainings)


def check_trainer(config: Mapping[str, Any], bundle: str, file: Path) -> None:
    """Refuse a ``train.json`` whose trainer is neither medseg's nor MONAI's ``SupervisedTrainer``, which was adopted.

    Raises ``BundleError`` if there is no trainer in it, or one that is not medseg's.
    """
    target = _trainer(config)
    if _is_ours(target):
        return
    found = f"trains with {target.rpartition('.')[2]}" if target else f"has no trainer at {_TRAINER}"
    raise BundleError(
        f"the bundle {bundle} {found}; 'medseg train' needs medseg.training.AdversarialSegmentationTrainer with"
        " medseg.training.Checkpoints among train#handlers, or MONAI's SupervisedTrainer. Train it with: python -m"
        " monai.bundle run training"
        f" --config_file {file}, or plan a bundle for your data: medseg bundle new"
    )
