"""Checkpoints of a run: the last few and the best, whole or not at all, and the conditions on which one is resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import Evaluator
from torch import nn

from medseg.errors import UsageError
from medseg.files import atomic_path, remove_leftovers
from medseg.labels import ANNOTATED_KEY, MAPPING_KEY
from medseg.manifests.layouts import path_checksum
from medseg.training.configuration import Change, differences, enclosing_parser, shortened, values_used
from medseg.training.data import random_state, set_random_state
from medseg.training.distributed import is_first
from medseg.training.trainer import AdversarialSegmentationTrainer

CaseSums = dict[str, str | list[str]]
"""SHA-256 of each file of one case, by what it is (``image``, ``label``, a channel); and the mapping of its labels."""

_READERS = 4


def higher_is_better(current: float, best: float) -> bool:
    """Whether ``current`` is a better key metric than ``best``; NaN never is, and never stays."""
    return not math.isnan(current) and (math.isnan(best) or current > best)


def save_weights(network: nn.Module, path: str | PathLike[str]) -> None:
    """Write a bare state dict in the standard memory layout, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_whole(weights, path)


def save_whole(content: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write what holds tensors, whole or not at all; a disk that refuses is an ``OSError`` that says so."""
    with atomic_path(path) as partial, partial.open("wb") as handle:  # by name, torch hides what the disk answers
        torch.save(content, handle)


@dataclass(frozen=True)
class Conditions:
    """What decides what a network learns.

    The ``configuration`` as it was used, empty for a trainer that was built by hand; the sums of the ``cases`` of each
    part, in their order, empty where cases are not files; the sum of the ``start`` weights, None for fresh ones.
    """

    configuration: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, list[CaseSums]] = field(default_factory=dict)
    start: str | None = None

    @classmethod
    def of(cls, parser: ConfigParser | None, data: Mapping[str, Iterable[Any] | None]) -> Conditions:
        """The conditions of a run that is about to start; every file that a case of a data set names is read once."""
        configuration = {} if parser is None else values_used(parser)
        start = configuration.get("init")
        checksum = cache(path_checksum)  # an image may stand among the labelled and the unlabelled cases
        with ThreadPoolExecutor(_READERS) as readers:
            sums = {
                part: list(readers.map(lambda item: _sums(checksum, item), list(items or ())))
                for part, items in data.items()
            }
        cases = {part: found for part, found in sums.items() if any(found)}
        if start is None:
            return cls(configuration, cases)
        weights = Path(start) / "models"  # of a bundle they alone count, whatever else has changed in it
        return cls(configuration, cases, path_checksum(weights if weights.is_dir() else Path(start)))

    def with_start_of(self, old: Conditions) -> Conditions:
        """Starting weights that are not given again are those of before: a checkpoint holds what became of them."""
        if self.configuration.get("init") is not None:
            return self
        kept: dict[str, Any] = {key: old.configuration[key] for key in ("init", "rescale") if key in old.configuration}
        return replace(self, configuration={**self.configuration, **kept}, start=old.start)

    def changes_since(self, old: Conditions) -> list[Change]:
        """The differences between two starts of one run; those that it may not have are refused with both values."""
        changes = list(differences(old.configuration, self.configuration))
        refused = [str(change) for change in changes if not change.allowed]
        refused += _other_cases(old.cases, self.cases)
        if (old.start, old._rescaled) != (self.start, self._rescaled):
            refused.append(f"starting weights: {old._described_start()} → {self._described_start()}")
        if refused:
            raise UsageError(
                f"the run cannot go on with what was changed since its checkpoint: {'; '.join(refused)}. Expected the "
                "same cases, networks, preprocessing, patches and seed; epochs, learning rates, weights of losses, "
                "clipping and what is watched may change. Give the old values, or train anew in another folder with "
                "--output"
            )
        return changes

    @property
    def _rescaled(self) -> bool:
        return self.start is not None and bool(self.configuration.get("rescale"))

    def _described_start(self) -> str:
        if self.start is None:
            return "fresh"
        text = f"{shortened(self.configuration['init'])} (SHA-256 {self.start[:12]}…)"
        return f"{text}, rescaled" if self._rescaled else text


@dataclass(frozen=True)
class RunPart:
    """A part of a run between two starts: its 1-based iterations, and what was changed at its beginning."""

    from_iteration: int
    to_iteration: int | None = None
    changed: tuple[Change, ...] = ()

    @classmethod
    def read(cls, text: str) -> list[RunPart]:
        """Parts from a checkpoint."""
        return [
            cls(part["from_iteration"], part["to_iteration"], tuple(Change(**change) for change in part["changed"]))
            for part in json.loads(text)
        ]


class Checkpoints:
    """Handler that saves the whole run after each epoch, and the weights whenever validation improves.

    A checkpoint also holds what the run is trained with: the configuration that this handler was built from, and the
    SHA-256 sums of its cases. :meth:`resume` goes on under the same conditions, or with changes that a run may have.

    It leaves ``checkpoint-NNNNNN.pt`` (by iteration), ``best.pt``, ``final.pt`` and, with a discriminator,
    ``best_discriminator.pt`` and ``final_discriminator.pt`` (bare state dicts). List it after ``ValidationHandler``.

    The ``folder`` is outside of a bundle's ``models/``. The key metric of the ``evaluator``'s validation decides what
    is best; its best value is part of the checkpoint. One is written every ``interval`` epochs; ``keep`` are kept.
    """

    def __init__(
        self, folder: str | PathLike[str], evaluator: Evaluator | None = None, interval: int = 1, keep: int = 2
    ) -> None:
        self.folder, self.evaluator, self.interval, self.keep = Path(folder), evaluator, interval, keep
        self.parts: list[RunPart] = []
        self._parser = enclosing_parser()
        self._conditions: Conditions | None = None
        self._shift: dict[str, int] = {}

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed, engine)

    def _start(self, engine: AdversarialSegmentationTrainer) -> None:
        if engine.state.iteration == 0:
            self.require_none()
        if is_first():
            remove_leftovers(self.folder)
            self.conditions(engine)
        self.parts = self.parts or [RunPart(engine.state.iteration + 1)]

    def require_none(self) -> None:
        """Refuse a folder in which another run has left checkpoints."""
        if self.latest() is not None:
            raise UsageError(
                f"the folder {self.folder} holds the checkpoints of another run; continue it with 'medseg train' and "
                "--resume, or choose another one with --output (output_dir in the configuration)"
            )

    def conditions(self, engine: AdversarialSegmentationTrainer) -> Conditions:
        """What the run is trained with; every file of a case is read once for it."""
        if self._conditions is None:
            data = {part: getattr(dataset, "data", None) for part, dataset in self.datasets(engine).items()}
            self._conditions = Conditions.of(self._parser, data)
        return self._conditions

    def datasets(self, engine: AdversarialSegmentationTrainer) -> dict[str, Any]:
        """The data set of each part of the run; None where there is none."""
        loaders = {
            "training": engine.data_loader,
            "validation": None if self.evaluator is None else self.evaluator.data_loader,
            "unlabelled": None if engine.unlabelled is None else engine.unlabelled.loader,
        }
        return {part: getattr(loader, "dataset", None) for part, loader in loaders.items()}

    def parts_until(self, iteration: int) -> list[RunPart]:
        """The parts of the run as far as it has come after an iteration."""
        if not self.parts:
            return []
        end = iteration if iteration >= self.parts[-1].from_iteration else None
        return [*self.parts[:-1], replace(self.parts[-1], to_iteration=end)]

    def save(self, engine: AdversarialSegmentationTrainer) -> Path:
        """Write the state of the run as it is between two iterations."""
        state = engine.capture()
        path = self.folder / f"checkpoint-{engine.state.iteration:06d}.pt"
        if not is_first():
            return path
        state["randomness"] = random_state()
        state["conditions"] = json.dumps(asdict(self.conditions(engine)))
        state["parts"] = json.dumps([asdict(part) for part in self.parts])
        state["shift"] = self._shift
        if self.evaluator is not None:
            validation = self.evaluator.state
            state["validation"] = [float(validation.best_metric), int(validation.best_metric_epoch)]
        save_whole(state, path)
        for old in self._all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return next(reversed(self._all()), None)

    def resume(self, engine: AdversarialSegmentationTrainer) -> int:
        """Go back to the newest checkpoint; returns its iteration, 0 if there is none.

        One that cannot be read, has other conditions (:meth:`Conditions.changes_since` says what may differ), or is
        beyond the end of the run is a ``UsageError``.
        """
        path = self.latest()
        if path is None:
            return 0
        try:
            state: dict[str, Any] = torch.load(path, map_location=engine.state.device, weights_only=True)
        except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
            raise UsageError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}); delete it to go on from the one before"
            ) from error
        try:
            iteration, changes = self._taken_up(path, state, engine)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
            raise UsageError(
                f"the checkpoint {path} is not as medseg writes it ({type(error).__name__}: {str(error)[:200]}); delete"
                " it to go on from the one before"
            ) from error
        if changes:
            self._shift = engine.updates_beyond_plan()
            self.parts = [*self.parts_until(iteration), RunPart(iteration + 1, changed=tuple(changes))]
        engine.shift_plan(self._shift)
        return iteration

    def _taken_up(
        self, path: Path, state: dict[str, Any], engine: AdversarialSegmentationTrainer
    ) -> tuple[int, list[Change]]:
        """Go back to a checkpoint; its iteration, and what has been changed since."""
        changes = self._changes(path, state, engine)
        engine.restore(state)
        set_random_state(state["randomness"])
        if self.evaluator is not None and "validation" in state:
            self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = state["validation"]
        self.parts, self._shift = RunPart.read(state["parts"]), _shift(state["shift"])
        return int(state["iteration"]), changes

    def _changes(self, path: Path, state: dict[str, Any], engine: AdversarialSegmentationTrainer) -> list[Change]:
        if "conditions" not in state:
            raise UsageError(
                f"the checkpoint {path} does not say which cases and which configuration it has seen (an earlier "
                "medseg wrote it); train anew in another folder with --output, from its best.pt with --init"
            )
        before = Conditions(**json.loads(state["conditions"]))
        self._conditions = self.conditions(engine).with_start_of(before)
        changes = self._conditions.changes_since(before)
        done, length = int(state["iteration"]), int(state["epoch_length"])
        if done > engine.state.max_epochs * length:
            raise UsageError(
                f"the run has done {done / length:g} epochs of {length} iterations, and its end is now after "
                f"{engine.state.max_epochs}; give at least as many epochs as it has done"
            )
        return changes

    def _epoch_completed(self, engine: AdversarialSegmentationTrainer) -> None:
        epoch, last = engine.state.epoch, engine.state.epoch == engine.state.max_epochs
        best = self.evaluator is not None and self.evaluator.state.best_metric_epoch == epoch
        shipped = engine.network if engine.averaged is None else engine.averaged.module
        for name in ["best"] * best + ["final"] * last if is_first() else ():
            save_weights(shipped, self.folder / f"{name}.pt")
            if engine.adversary is not None:
                save_weights(engine.adversary.discriminator, self.folder / f"{name}_discriminator.pt")
        if last or epoch % self.interval == 0:
            self.save(engine)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.pt"))


def _shift(saved: dict[str, int] | int) -> dict[str, int]:
    """Earlier versions had one number, the generator's."""
    return {"generator": saved} if isinstance(saved, int) else dict(saved)


def _sums(checksum: Callable[[Path], str], item: Any) -> CaseSums:
    found: CaseSums = {}
    for key, value in item.items() if isinstance(item, Mapping) else ():
        if key in (MAPPING_KEY, ANNOTATED_KEY):  # what the values in the label file mean decides as much as the file
            found[str(key)] = json.dumps(value, sort_keys=True)
        elif isinstance(value, list | tuple) and value and all(_is_file(part) for part in value):
            found[str(key)] = [checksum(Path(part)) for part in value]
        elif _is_file(value):
            found[str(key)] = checksum(Path(value))
    return found


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).exists()


def _other_cases(old: Mapping[str, list[CaseSums]], new: Mapping[str, list[CaseSums]]) -> list[str]:
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
