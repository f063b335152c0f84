"""What a run is trained with, kept in its checkpoints, and what a resumed run may change of it.

What a run is trained with, kept in its checkpoints: the configuration, the cases by their content, the start.

What a resumed run may change: everything else is refused with its old and its new value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medseg.errors import UsageError
from medseg.labels import MAPPING_KEY
from medseg.manifests.create import path_checksum
from medseg.training.configuration import values_used

Case = dict[str, str | list[str]]
"""SHA-256 of each file of one case, by what it is (``image``, ``label``, a channel); and the mapping of its labels."""

_READERS = 4


@dataclass(frozen=True)
class Conditions:
    """What decides what a network learns.

    Attributes
    ----------
    configuration
        As :func:`~medseg.training.configuration.values_used` gives it; empty for a trainer that was built by hand.
    cases
        Those to train on, to validate on, and without labels, in their order; empty where cases are not files.
    start
        SHA-256 of the weights that the network started from; None for fresh ones.
    """

    configuration: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    start: str | None = None

    def text(self) -> str:
        """As JSON, which any loader can read safely."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Conditions:
        """From what :meth:`text` gave."""
        return cls(**json.loads(text))


def conditions_of(parser: ConfigParser | None, data: Mapping[str, Iterable[Any] | None]) -> Conditions:
    """The conditions of a run that is about to start.

    Parameters
    ----------
    parser
        The configuration it was built from, if there is one.
    data
        The cases of each part, as their datasets hold them: mappings in which paths of files stand. Every file is
        read once.
    """
    configuration = {} if parser is None else values_used(parser)
    start = configuration.get("init")
    checksum = cache(path_checksum)  # an image may stand among the labelled and the unlabelled cases
    with ThreadPoolExecutor(_READERS) as readers:
        hashed = {
            part: list(readers.map(lambda item: _case(checksum, item), list(items or ())))
            for part, items in data.items()
        }
    cases = {part: found for part, found in hashed.items() if any(found)}
    return Conditions(configuration, cases, None if start is None else _start_checksum(Path(start)))


def _case(checksum: Callable[[Path], str], item: Any) -> Case:
    if not isinstance(item, Mapping):
        return {}
    found: Case = {}
    for key, value in item.items():
        if isinstance(value, list | tuple) and value and all(_is_file(part) for part in value):
            found[str(key)] = [checksum(Path(part)) for part in value]
        elif _is_file(value):
            found[str(key)] = checksum(Path(value))
        elif key == MAPPING_KEY:  # what the values in the label file mean decides as much as the file
            found[MAPPING_KEY] = json.dumps(value, sort_keys=True)
    return found


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).exists()


def _start_checksum(path: Path) -> str:
    """Of a file with weights, or of those of a bundle, whatever else has changed in it."""
    return path_checksum(path / "models" if (path / "models").is_dir() else path)


_FREE = (
    # where things lie and how they are computed; the cases are compared by their content
    "bundle_root", "dataset_dir", "datalist", "output_dir", "weights", "device", "num_workers", "precision", "compile",
    "train#trainer#device", "train#trainer#precision", "train#trainer#channels_last", "train#trainer#non_blocking",
    "validate#evaluator#device", "validate#evaluator#amp", "validate#dataloader#num_workers",
    "validate#inferer#sw_batch_size", "validate#inferer#device", "validate#inferer#sw_device", "unlabelled#num_workers",
    # what is watched and written
    "val_interval", "mlflow", "train#handlers", "validate#handlers", "validate#additional_metrics",
    # what MONAI runs, not what it trains with; the starting weights are compared by their content
    "imports", "initialize", "run", "training", "finalize", "known_ids", "init", "rescale",
    "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0",
)  # fmt: skip
_APPLIED = (
    # length and rates: the schedule is planned anew over the whole run
    "epochs", "train#trainer#max_epochs", "learning_rate", "discriminator_learning_rate", "weight_decay",
    "discriminator_weight_decay", "scheduler#lr_lambda", "*optimizer#lr", "*optimizer#weight_decay",
    "*optimizer#betas", "*optimizer#eps", "*optimizer#momentum", "*optimizer#nesterov",
    # weights of losses, and when they count
    "adversarial_weight", "warm_up", "ramp", "alternate", "adversary#schedule", "consistency_weight",
    "consistency_start", "consistency_ramp", "unlabelled#consistency", "unlabelled#start", "unlabelled#ramp",
    "unlabelled#adversarial", "ssim_weight", "r1_penalty", "adversary#penalty", "adversary#feature_weight",
    # what keeps the networks in balance
    "train#trainer#max_norm", "adversary#max_norm", "adversary#smoothing", "adversary#scaled", "adversary#noise",
    "adversary#too_good", "discriminator_noise", "ema_decay",
)  # fmt: skip
_WEIGHTS = ("loss", "adversary#loss")
"""Components of which numbers may change, and nothing else."""

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
        return f"{self.id}: {_short(self.old)} → {_short(self.new)}"

    def plain(self) -> dict[str, Any]:
        """For ``run.json``."""
        return asdict(self)


def with_same_start(old: Conditions, new: Conditions) -> Conditions:
    """Starting weights that are not given again are those of before: the checkpoint holds what has become of them."""
    if new.configuration.get("init") is not None:
        return new
    given: dict[str, Any] = {name: old.configuration[name] for name in ("init", "rescale") if name in old.configuration}
    return replace(new, configuration={**new.configuration, **given}, start=old.start)


def allowed_changes(old: Conditions, new: Conditions) -> list[Change]:
    """The differences between two starts of one run, all of which it may have.

    Raises
    ------
    UsageError
        Naming each difference that it may not have, with both values.
    """
    changes = list(_differences(old.configuration, new.configuration, ""))
    refused = [str(change) for change in changes if not _may_change(change)]
    refused += _other_cases(old.cases, new.cases)
    if (old.start, _rescaled(old)) != (new.start, _rescaled(new)):
        refused.append(f"starting weights: {_start(old)} → {_start(new)}")
    if refused:
        raise UsageError(
            f"the run cannot go on with what was changed since its checkpoint: {'; '.join(refused)}. Expected the same "
            "cases, networks, preprocessing, patches and seed; epochs, learning rates, weights of losses, clipping and "
            "what is watched may change. Give the old values, or train anew in another folder with --output"
        )
    return changes


def _start(conditions: Conditions) -> str:
    if conditions.start is None:
        return "fresh"
    text = f"{_short(conditions.configuration['init'])} (SHA-256 {conditions.start[:12]}…)"
    return f"{text}, rescaled" if _rescaled(conditions) else text


def _rescaled(conditions: Conditions) -> bool:
    return conditions.start is not None and bool(conditions.configuration.get("rescale"))


def _may_change(change: Change) -> bool:
    if _matches(change.id, _FREE):
        return True
    if _matches(change.id, _APPLIED):
        return not change.id.endswith(_ANOTHER_KIND)
    return _matches(change.id, _WEIGHTS) and all(_is_number(value) for value in (change.old, change.new))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}#*") for pattern in patterns)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differences(old: Any, new: Any, path: str) -> Iterator[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            child = f"{path}#{key}" if path else str(key)
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), child)
    elif _are_steps(old) and _are_steps(new) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, now, f"{path}#{index}")
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield Change(path, old, new)


def _are_steps(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _other_cases(old: Mapping[str, list[Case]], new: Mapping[str, list[Case]]) -> list[str]:
    found = []
    for part in dict.fromkeys([*old, *new]):
        before, now = old.get(part, []), new.get(part, [])
        if before == now:
            continue
        others = [case for case in now if case not in before]
        gone = [case for case in before if case not in now]
        what = f"{len(gone)} left out, {len(others)} that were not there" if gone or others else "in another order"
        found.append(f"cases for {part}: {len(before)} → {len(now)}, {what} (by the content of their files)")
    trained = old.get("training", [])
    if found and (seen := [case for case in new.get("validation", []) if case in trained]):
        found.append(f"{len(seen)} of the cases to validate on have been trained on")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
