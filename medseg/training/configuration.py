"""The configuration of a run: ids that are checked, values as they were used, and what may change on a resume."""

from __future__ import annotations

import inspect
import json
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import FrameType
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from medseg.bundle.config import ABSENT, ids, item_at, laid_out
from medseg.errors import BundleError, UsageError

_OF_TRACKING = frozenset(DEFAULT_MLFLOW_SETTINGS["configs"]) - frozenset(DEFAULT_MLFLOW_SETTINGS["handlers_id"])
"""Ids that MONAI's own ``--tracking`` adds, all of them together."""

_LOCATOR = ComponentLocator()

_GONE = {
    "adversarial_weight": "write adversarial_share, the share of the supervised loss's gradient, such as 0.1",
    "adversary#schedule#weight": "write adversary#schedule#share, the share of the supervised loss's gradient",
    "adversary#smoothing": "delete it: reference and prediction are both hard labels",
    "adversary#scaled": "delete it: reference and prediction are both hard labels",
}
"""Ids of earlier versions, and what to do instead; a value of theirs means something else now, or nothing."""


def enclosing_parser() -> ConfigParser | None:
    """The parser that is evaluating a configuration right now, in whose course this call happens; None without one.

    MONAI hands an expression or a component nothing but the references written in it, and an id that nobody asked
    for cannot be written there, so the parser is looked up among the callers.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def refuse_gone(config: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> None:
    """Refuse ids of earlier versions, in a configuration or among the overrides ``given``, with what to write."""
    overrides = {_plain_id(name) for name in given or ()}
    found = [name for name in _GONE if name in overrides or item_at(config, name.replace("#", "::")) is not ABSENT]
    if found:
        told = "; ".join(f"{name} is gone: {_GONE[name]}" for name in found)
        raise UsageError(f"the training configuration sets what this medseg does not know any more: {told}")


def check_ids(known: Sequence[str]) -> None:
    """Refuse ids that the bundle does not know; for the list ``initialize`` of a configuration.

    MONAI adds an id that is given on the command line to the configuration, whether anything uses it or not, and a
    typo then trains with the default. ``known`` are the ids on the first level, and those inside of each group that is
    listed like ``train#dataset``; what is inside of a component is left to its class.

    A ``UsageError`` names every unknown id and the closest known ones.
    """
    parser = enclosing_parser()
    if parser is None:
        raise BundleError("check_ids was called from outside; expected it in the list 'initialize' of a configuration")
    refuse_gone(parser.config)
    listed = [_plain_id(name) for name in known]  # MONAI writes its separator into what it resolves
    config = parser.config
    allowed = {*listed, parser.meta_key, *(_OF_TRACKING if set(config) >= _OF_TRACKING else ())}
    unknown = [name for name in _members(config, listed) if name not in allowed]
    if unknown:
        found = "; ".join(f"{name!r} ({_suggestion(name, listed)})" for name in unknown)
        raise UsageError(
            f"this bundle has no use for the id(s) {found}. Correct or leave out what it does not know; ids of a "
            "configuration file of your own are listed there under '+known_ids'"
        )


def _members(config: Mapping[str, Any], listed: Sequence[str]) -> Iterator[str]:
    """Every id on the first level, and inside of the groups that are listed."""
    for group in sorted({"", *(name.rpartition("#")[0] for name in listed)}):
        children = item_at(config, group.replace("#", "::"))
        if isinstance(children, Mapping):
            yield from (f"{group}#{name}" if group else name for name in children)


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """``["epochs=3", "device=cpu"]`` → ``{"epochs": 3, "device": "cpu"}``; values are JSON where they can be.

    >>> parse_overrides(["epochs=3", "patch_size=[32, 32, 32]", "device=cpu"])
    {'epochs': 3, 'patch_size': [32, 32, 32], 'device': 'cpu'}
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UsageError(f"found the setting {assignment!r}, expected ID=VALUE, for example --set epochs=20")
        try:
            parsed[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name.strip()] = text
    return parsed


def check_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse ids that the configuration does not have: MONAI would add them silently and train with the default.

    What the class of a component takes, such as ``adversary#schedule#alternate``, is an id although it is not written.
    """
    config = laid_out(config)
    refuse_gone(config, overrides)
    for name in overrides:
        place = name.replace("#", "::")
        if item_at(config, place) is ABSENT and not _is_argument(config, place):
            known = list(ids(config, "#"))
            raise UsageError(f"the bundle's training configuration has no id {name!r}; {_suggestion(name, known)}")


def _is_argument(config: Mapping[str, Any], place: str) -> bool:
    """Whether the id names an argument of the component that it would be written into."""
    component, _, argument = place.rpartition("::")
    found = item_at(config, component)
    if not ConfigComponent.is_instantiable(found):
        return False
    target = ConfigComponent(found, locator=_LOCATOR).resolve_module_name()
    called = pydoc.locate(target) if isinstance(target, str) else target
    parameter = inspect.signature(called).parameters.get(argument) if callable(called) else None
    return parameter is not None and parameter.kind is not parameter.VAR_KEYWORD


def _suggestion(name: str, known: Sequence[str]) -> str:
    """What the writer of an unknown id may have meant."""
    close = get_close_matches(_plain_id(name), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known ids are: {', '.join(k for k in known if '#' not in k)}"


def _plain_id(name: str) -> str:
    return name.replace("::", "#")


def values_used(parser: ConfigParser) -> dict[str, Any]:
    """The configuration as JSON: ids on the first level by the value they had, the rest as written.

    Only what has been built already is evaluated; metadata are left out.
    """
    resolved = parser.ref_resolver.resolved_content
    config = {name: value for name, value in parser.config.items() if name != parser.meta_key}
    used = {name: resolved[name] for name in config if name in resolved and _is_data(resolved[name])}
    return as_json({**config, **used})


def as_json(value: Any) -> Any:
    """A copy that JSON can hold: paths and other objects become text."""
    return json.loads(json.dumps(value, default=str))


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_data(item) for item in value)
    return value is None or isinstance(value, str | int | float)


_FREE = (
    # where things lie and how they are computed; the cases are compared by their content
    "bundle_root", "dataset_dir", "datalist", "output_dir", "weights", "device", "num_workers", "precision", "compile",
    "train#trainer#device", "train#trainer#precision", "train#trainer#channels_last", "train#trainer#non_blocking",
    "validate#evaluator#device", "validate#evaluator#amp", "validate#dataloader#num_workers",
    "validate#inferer#sw_batch_size", "validate#inferer#device", "validate#inferer#sw_device", "unlabelled#num_workers",
    # what is watched and written
    "val_interval", "mlflow", "train#handlers", "validate#handlers", "validate#additional_metrics", "judge_steps",
    # what MONAI runs, not what it trains with; the starting weights are compared by their content
    "imports", "initialize", "run", "training", "finalize", "known_ids", "init", "rescale",
    "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0",
)  # fmt: skip
_APPLIED = (
    # length and rates: the schedule is planned anew over the whole run
    "epochs", "train#trainer#max_epochs", "learning_rate", "discriminator_learning_rate", "weight_decay",
    "discriminator_weight_decay", "*scheduler#lr_lambda", "*optimizer#lr", "*optimizer#weight_decay",
    "*optimizer#betas", "*optimizer#eps", "*optimizer#momentum", "*optimizer#nesterov",
    # weights of losses, and when they count
    "adversarial_share", "adversarial_weight", "wrong_pairs", "warm_up", "ramp", "alternate", "adversary#schedule",
    "adversary#wrong_pairs", "adversary#balance", "consistency_weight",
    "consistency_start", "consistency_ramp", "unlabelled#consistency", "unlabelled#start", "unlabelled#ramp",
    "unlabelled#adversarial", "teacher_weight", "distillation#weight",
    "ssim_weight", "r1_penalty", "adversary#penalty", "adversary#feature_weight",
    # what keeps the networks in balance
    # "adversarial_weight", "smoothing" and "scaled" are gone: runs that began with them go on without
    "train#trainer#max_norm", "adversary#max_norm", "adversary#smoothing", "adversary#scaled", "adversary#noise",
    "adversary#too_good", "discriminator_noise", "ema_decay",
)  # fmt: skip
_WEIGHTS = ("loss", "adversary#loss")
"""Components of which numbers may change, and nothing else."""

_LATER = ("distillation", "train#trainer#distillation")
"""Ids that runs of earlier versions began without, and that do nothing by themselves."""

_ANOTHER_KIND = ("#_target_", "#_disabled_", "#_mode_", "#_requires_")
_ABSENT = "(absent)"
_LONGEST = 80


@dataclass(frozen=True)
class Change:
    """One id whose value is not what it was when the checkpoint was written."""

    id: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.id}: {shortened(self.old)} → {shortened(self.new)}"

    @property
    def allowed(self) -> bool:
        """Whether a run may go on with it."""
        if self.id == "teachers":  # that they are the same ones, the checkpoint tells by their content
            return bool(self.new) == (self.old != _ABSENT and bool(self.old))
        if _matches(self.id, _FREE) or (self.old == _ABSENT and self.id in _LATER):
            return True
        if _matches(self.id, _APPLIED):
            return not self.id.endswith(_ANOTHER_KIND)
        return _matches(self.id, _WEIGHTS) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in (self.old, self.new)
        )


def differences(old: Any, new: Any, path: str = "") -> Iterator[Change]:
    """What two configurations differ in, id by id."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            child = f"{path}#{key}" if path else str(key)
            yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), child)
    elif _are_steps(old) and _are_steps(new) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, now, f"{path}#{index}")
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield Change(path, old, new)


def shortened(value: Any) -> str:
    """A value as it stands in a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}#*") for pattern in patterns)


def _are_steps(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
