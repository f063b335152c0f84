"""Checkpoints of a run: atomic, the last few and the best, loadable without executing anything."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from torch import nn

from medseg.errors import UsageError
from medseg.files import atomic_path, remove_leftovers
from medseg.training.configuration import enclosing_parser
from medseg.training.data import random_state, set_random_state
from medseg.training.distributed import is_first
from medseg.training.resume import Change, Conditions, allowed_changes, conditions_of, with_same_start
from medseg.training.schedule import shift_cycles

if TYPE_CHECKING:
    from medseg.training.trainer import AdversarialSegmentationTrainer


def higher_is_better(current: float, best: float) -> bool:
    """Whether ``current`` is a better key metric than ``best``; NaN never is, and never stays."""
    return not math.isnan(current) and (math.isnan(best) or current > best)


def save_weights(network: nn.Module, path: str | PathLike[str]) -> None:
    """Write a bare state dict in the standard memory layout, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as partial, partial.open("wb") as handle:  # by name, torch hides what the disk answers
        torch.save(weights, handle)


class Checkpoints:
    """Handler that saves the whole run after each epoch, and the weights whenever validation improves.

    A checkpoint also holds what the run is trained with: the configuration that this handler was built from, and the
    SHA-256 sums of its cases. :meth:`resume` goes on under the same conditions, or with changes that a run may have.

    It leaves ``checkpoint-NNNNNN.pt`` (by iteration), ``best.pt``, ``final.pt`` and, with a discriminator,
    ``best_discriminator.pt`` and ``final_discriminator.pt`` (bare state dicts). List it after ``ValidationHandler``.

    Parameters
    ----------
    folder
        Where to; outside of a bundle's ``models/``.
    evaluator
        The validation whose key metric decides what is best; its best value is part of the checkpoint.
    interval
        Epochs between checkpoints.
    keep
        How many are kept.
    """

    def __init__(
        self, folder: str | PathLike[str], evaluator: Evaluator | None = None, interval: int = 1, keep: int = 2
    ) -> None:
        self.folder, self.evaluator, self.interval, self.keep = Path(folder), evaluator, interval, keep
        self.parts: list[dict[str, Any]] = []
        self._parser = enclosing_parser()
        self._conditions: Conditions | None = None
        self._shift = 0

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed, engine)

    def _start(self, engine: AdversarialSegmentationTrainer) -> None:
        if engine.state.iteration == 0 and self.latest() is not None:
            raise UsageError(
                f"the folder {self.folder} holds the checkpoints of another run; continue it with 'medseg train' and "
                "--resume, or choose another output folder (output_dir in the configuration)"
            )
        if is_first():
            remove_leftovers(self.folder)
            self.conditions(engine)
        self.parts = self.parts or [_part(engine.state.iteration + 1, [])]

    def conditions(self, engine: AdversarialSegmentationTrainer) -> Conditions:
        """What the run is trained with; every file of a case is read once for it."""
        if self._conditions is None:
            unlabelled = None if engine.unlabelled is None else engine.unlabelled.loader
            loaders = {
                "training": engine.data_loader,
                "validation": None if self.evaluator is None else self.evaluator.data_loader,
                "unlabelled": unlabelled,
            }
            data = {part: getattr(getattr(loader, "dataset", None), "data", None) for part, loader in loaders.items()}
            self._conditions = conditions_of(self._parser, data)
        return self._conditions

    def parts_until(self, iteration: int) -> list[dict[str, Any]]:
        """The parts of the run so far, each with the ids that were changed at its beginning, for ``run.json``."""
        last = [
            {**part, "to_iteration": iteration if iteration >= part["from_iteration"] else None} for part in self.parts
        ]
        return [*self.parts[:-1], *last[-1:]]

    def save(self, engine: AdversarialSegmentationTrainer) -> Path:
        """Write the state of the run as it is between two iterations."""
        state = engine.capture()
        state["randomness"] = random_state()
        state["conditions"] = self.conditions(engine).text() if is_first() else ""
        state["parts"] = json.dumps(self.parts)
        state["shift"] = self._shift
        if self.evaluator is not None:
            validation = self.evaluator.state
            state["validation"] = [float(validation.best_metric), int(validation.best_metric_epoch)]
        path = self.folder / f"checkpoint-{engine.state.iteration:06d}.pt"
        if not is_first():
            return path
        with atomic_path(path) as partial, partial.open("wb") as handle:
            torch.save(state, handle)
        for old in self._all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        found = self._all()
        return found[-1] if found else None

    def resume(self, engine: AdversarialSegmentationTrainer) -> int:
        """Go back to the newest checkpoint; returns its iteration, 0 if there is none.

        Raises
        ------
        UsageError
            If it cannot be read, was written by another configuration or with other cases, or is beyond the end of
            the run (:func:`~medseg.training.resume.allowed_changes` says what may differ).
        """
        path = self.latest()
        if path is None:
            return 0
        state = self._load(path, engine.state.device)
        changes = self._changes(path, state, engine)
        engine.restore(state)
        set_random_state(state["randomness"])
        if self.evaluator is not None and "validation" in state:
            self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = state["validation"]
        iteration = int(state["iteration"])
        self.parts, self._shift = json.loads(state["parts"]), int(state["shift"])
        if changes:
            self._shift = engine.updates_beyond_plan()
            self.parts = [*self.parts_until(iteration), _part(iteration + 1, changes)]
        shift_cycles(engine.generator_step.scheduler, self._shift)
        return iteration

    def _changes(self, path: Path, state: dict[str, Any], engine: AdversarialSegmentationTrainer) -> list[Change]:
        if "conditions" not in state:
            raise UsageError(
                f"the checkpoint {path} does not say which cases and which configuration it has seen (an earlier "
                "medseg wrote it); train anew in another folder with --output, from its best.pt with --init"
            )
        before = Conditions.read(state["conditions"])
        self._conditions = with_same_start(before, self.conditions(engine))
        changes = allowed_changes(before, self._conditions)
        done, length = int(state["iteration"]), int(state["epoch_length"])
        if done > engine.state.max_epochs * length:
            raise UsageError(
                f"the run has done {done / length:g} epochs of {length} iterations, and its end is now after "
                f"{engine.state.max_epochs}; give at least as many epochs as it has done"
            )
        return changes

    def _load(self, path: Path, device: torch.device) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
            raise UsageError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}); delete it to go on from the one before"
            ) from error
        return state

    def _epoch_completed(self, engine: AdversarialSegmentationTrainer) -> None:
        improved = self.evaluator is not None and self.evaluator.state.best_metric_epoch == engine.state.epoch
        if improved:
            self._ship(engine, "best")
        if engine.state.epoch == engine.state.max_epochs:
            self._ship(engine, "final")
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self.save(engine)

    def _ship(self, engine: AdversarialSegmentationTrainer, name: str) -> None:
        if not is_first():
            return
        shipped = engine.network if engine.averaged is None else engine.averaged.module
        save_weights(shipped, self.folder / f"{name}.pt")
        if engine.adversary is not None:
            save_weights(engine.adversary.discriminator, self.folder / f"{name}_discriminator.pt")

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.pt"))


def _part(first: int, changes: list[Change]) -> dict[str, Any]:
    return {"from_iteration": first, "to_iteration": None, "changed": [change.plain() for change in changes]}
