"""Checkpoints of a run: atomic, the last few and the best, loadable without executing anything."""

from __future__ import annotations

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
from medseg.training.parallel import is_first
from medseg.training.randomness import capture_randomness, restore_randomness

if TYPE_CHECKING:
    from medseg.training.engine import AdversarialSegmentationTrainer

__all__ = ["Checkpoints", "better", "save_weights"]


def better(current: float, best: float) -> bool:
    """Whether ``current`` is a better key metric than ``best``; NaN never is, and never stays."""
    return not math.isnan(current) and (math.isnan(best) or current > best)


def save_weights(network: nn.Module, path: str | PathLike[str]) -> None:
    """Write a bare state dict in the standard memory layout, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as partial, partial.open("wb") as handle:  # by name, torch hides what the disk answers
        torch.save(weights, handle)


class Checkpoints:
    """Handler that saves the whole run after each epoch, and the weights whenever validation improves.

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

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._clean)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed, engine)

    def _clean(self) -> None:
        if is_first():
            remove_leftovers(self.folder)

    def save(self, engine: AdversarialSegmentationTrainer) -> Path:
        """Write the state of the run as it is between two iterations."""
        state = engine.capture()
        state["randomness"] = capture_randomness()
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
            If it was written by another configuration or cannot be read.
        """
        path = self.latest()
        if path is None:
            return 0
        state = self._load(path, engine.state.device)
        engine.restore(state)
        restore_randomness(state["randomness"])
        if self.evaluator is not None and "validation" in state:
            self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = state["validation"]
        return int(state["iteration"])

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
