"""A training that MONAI's own ``SupervisedTrainer`` would run, as medseg runs it: checked, watched and resumable.

What the config trains with is left alone: network, loss, optimiser, data, transforms, validation. Its trainer becomes
medseg's, which is a ``SupervisedTrainer`` as well, and what writes checkpoints gives way to what can go on from them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.bundle.config import ABSENT, SEPARATOR, follow, item_at, target_of
from medseg.errors import BundleError

TRAINER = "train::trainer"
_PLACES = (TRAINER, "trainer")
"""Where trainers of others stand."""
_REPLACED = ("CheckpointSaver", "EarlyStopHandler", "EarlyStopping")
_REFERENCE = re.compile(r"@[\w:#]+")


@dataclass(frozen=True)
class Adopted:
    """A config with medseg's trainer, and what is done otherwise than it says."""

    config: dict[str, Any]
    notes: tuple[str, ...]


def adopt(config: Mapping[str, Any], where: str) -> Adopted | None:
    """The config of a training, laid out, with medseg's trainer for MONAI's; None if it names another one.

    ``where``: Which file of which bundle, for messages. Raises ``BundleError`` if its trainer does in a step what
    medseg's does not.
    """
    places = (follow(config, place) for place in _PLACES)
    place = next((one for one in places if target_of(_mapping(config, one)) == "SupervisedTrainer"), None)
    if place is None:
        return None
    made: dict[str, Any] = copy.deepcopy(dict(config))
    trainer = _mapping(made, place)
    if trainer.get("iteration_update") is not None:
        raise BundleError(
            f"the trainer in {where} has its own iteration_update, which medseg does not run; train it with: "
            "python -m monai.bundle run"
        )
    notes = ["trained by medseg.training.AdversarialSegmentationTrainer without an adversary, with MONAI's other parts"]
    trainer["_target_"] = "medseg.training.AdversarialSegmentationTrainer"
    mixed = trainer.pop("amp", False) is not False
    trainer.pop("amp_kwargs", None)
    if mixed:
        notes.append("amp, which counts on CUDA alone, becomes the id precision: what the device really computes")
    made.setdefault("precision", "auto" if mixed else "fp32")
    trainer["precision"] = "@precision"
    handlers = _thin_out(made, f"{place}::train_handlers", where, notes)
    evaluator = next(iter(_held(made, handlers, "ValidationHandler", "validator")), None)
    if evaluator:
        _thin_out(made, f"{_id(evaluator)}::val_handlers", where, notes)
    schedulers = _held(made, handlers, "LrScheduleHandler", "lr_scheduler")
    loads = any(_name(made, part) == "CheckpointLoader" for part in handlers)
    lacking = ["its CheckpointLoader would put the starting weights in place again"] if loads else []
    made.setdefault("train", {}).setdefault("trainer", f"@{place}")
    made["train"]["handlers"] = [
        *handlers,
        {"_target_": "medseg.training.ExactEpochs", "seed": "@seed", "schedulers": schedulers, "lacking": lacking},
        {"_target_": "medseg.training.MetricsLogger", "folder": "@output_dir", "evaluator": evaluator},
        {
            "_target_": "medseg.training.Checkpoints",
            "folder": "$str(@output_dir) + '/checkpoints'",
            "evaluator": evaluator,
        },
    ]
    trainer["train_handlers"] = "@train::handlers"
    _add_ids(made, str(trainer.get("network", "")))
    _settle_data(made)
    return Adopted(made, tuple(dict.fromkeys(notes)))


def _mapping(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    found = item_at(config, place)
    return found if isinstance(found, dict) else {}


def _thin_out(config: Mapping[str, Any], place: str, where: str, notes: list[str]) -> list[Any]:
    """The handlers at a place, a list in which those that medseg's take the place of are disabled."""
    listed = item_at(config, follow(config, place))
    if listed in (ABSENT, None):
        return []
    if not isinstance(listed, list):
        raise BundleError(f"{place} in {where} is {listed!r}, expected a list of handlers; write it out")
    for index, part in enumerate(listed):
        if (name := _name(config, part)) in _REPLACED:
            notes.append(
                f"its {name} is left out: checkpoints and the best model are written by medseg, below the output "
                "folder, and every epoch is run"
            )
            listed[index] = {"_target_": name, "_disabled_": True}  # ids of those after it stay
    return listed


def _id(reference: str) -> str:
    return reference[1:].replace("#", SEPARATOR)


def _written(config: Mapping[str, Any], part: Any) -> Any:
    """A handler, which may stand elsewhere in the config."""
    return item_at(config, follow(config, _id(part))) if isinstance(part, str) and part.startswith("@") else part


def _name(config: Mapping[str, Any], part: Any) -> str:
    """Class of a handler."""
    written = _written(config, part)
    return target_of(written) if isinstance(written, Mapping) else ""


def _held(config: dict[str, Any], handlers: list[Any], name: str, key: str) -> list[str]:
    """References to what the handlers of a class hold; what stands there itself gets an id, so that it is made once."""
    found: list[str] = []
    for handler in (_written(config, part) for part in handlers if _name(config, part) == name):
        if (value := handler.get(key)) is None:
            continue
        if not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
            place = f"{key}_{len(found)}_of_handler"
            config[place], value = value, f"@{place}"
            handler[key] = value
        found.append(value)
    return found


def _add_ids(config: dict[str, Any], network: str) -> None:
    """Ids that ``medseg train`` sets; those that are there already keep their values."""
    root = {"output_dir": "$str(@bundle_root) + '/runs'"} if "bundle_root" in config else {"output_dir": "runs"}
    for name, value in {**root, "seed": 0, "judge_steps": 0}.items():
        config.setdefault(name, value)
    config.setdefault("training", config.get("run", [f"$@{TRAINER}.run()"]))
    if _REFERENCE.fullmatch(network) and "init" not in config:
        config |= {"init": None, "rescale": False}
        begun = config.get("initialize") or []
        begun = [begun] if isinstance(begun, str) else list(begun)
        config["initialize"] = [*begun, f"$medseg.training.started({network}, @init, @rescale)"]
        imports = config.get("imports") or []
        imports = [imports] if isinstance(imports, str) else imports
        config["imports"] = [*imports, "$import medseg", "$import medseg.training"]


def _settle_data(config: dict[str, Any]) -> None:
    """Prepared images are kept below the output folder, as all that a run writes; workers begin anew in each epoch."""
    for part in ("train", "validate"):
        dataset = _mapping(config, follow(config, f"{part}::dataset"))
        if dataset.get("cache_dir") is not None:
            dataset["cache_dir"] = "$str(@output_dir) + '/cache'"
    _mapping(config, follow(config, "train::dataloader")).pop("persistent_workers", None)
