"""Epochs that begin alike whenever they begin: for data sets and loaders that draw from generators of their own.

What a bundle of others draws hangs on everything that was drawn before, so a run that is resumed would go on with other
patches. Here each epoch draws from generators that are seeded with the run's seed and the number of the epoch.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import SmartCacheDataset, ThreadDataLoader
from monai.data.utils import set_rnd
from torch.utils.data import IterableDataset

from medseg.errors import UsageError
from medseg.training.data import random_state, set_random_state
from medseg.training.trainer import AdversarialSegmentationTrainer

_logger = logging.getLogger("medseg.training")


class ExactEpochs:
    """Handler that makes a run of any data set and loader resumable: the same draws, and the state of ``schedulers``.

    ``seed``: Of the run. ``schedulers``: Learning rates that handlers of MONAI step. ``lacking``: Why the run could not
    go on exactly, beside what is found in its loader: said at the start, and refused when it is to go on.
    """

    def __init__(self, seed: int = 0, schedulers: Sequence[Any] = (), lacking: Sequence[str] = ()) -> None:
        self.seed, self.schedulers, self.lacking = seed, tuple(schedulers), tuple(lacking)

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        """Register with the trainer, whose loader is put behind one that seeds each epoch."""
        self.lacking += tuple(_lacking(engine.data_loader))
        engine.data_loader = _SeededEpochs(engine, self.seed)
        engine.stateful["schedulers"] = self
        engine.add_event_handler(Events.STARTED, self._start, engine)

    def state_dict(self) -> dict[str, Any]:
        """States of the learning rates."""
        return {"states": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state; a ``UsageError`` where the run cannot go on exactly."""
        if self.lacking:
            raise UsageError(
                f"this run cannot go on as if it had not stopped: {'; '.join(self.lacking)}. Start anew in another "
                "folder with --output, from its best.pt with --init"
            )
        for scheduler, saved in zip(self.schedulers, state["states"], strict=True):
            scheduler.load_state_dict(saved)

    def _start(self, engine: AdversarialSegmentationTrainer) -> None:
        if engine.state.iteration == 0:
            for what in self.lacking:
                _logger.warning("if this run is interrupted it cannot go on: %s", what)


def _lacking(loader: Any) -> Iterator[str]:
    """What of a loader could not be taken up again."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(loader, ThreadDataLoader):
        yield "a ThreadDataLoader draws while the network learns, in no fixed order"
    if isinstance(dataset, SmartCacheDataset):
        yield "a SmartCacheDataset replaces its cases in the background"
    if dataset is None or isinstance(dataset, IterableDataset):
        yield "the data come as a stream, which has no places to go back to"
    if getattr(loader, "persistent_workers", False):
        yield "workers that stay from epoch to epoch (persistent_workers) keep what they have drawn"


class _SeededEpochs:
    """The batches of a loader; each pass draws from generators seeded with the number of the epoch.

    It stands for the loader: ``dataset``, ``sampler`` and all else are that one's.
    """

    def __init__(self, engine: AdversarialSegmentationTrainer, seed: int) -> None:
        self._engine, self._loader, self._seed = engine, engine.data_loader, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        epoch, done = divmod(self._engine.state.iteration, self._engine.state.epoch_length)
        kept = random_state()
        self._begin(epoch)
        batches = iter(self._loader)
        if done:  # in the midst of an epoch: its first batches are drawn again, and what the network drew is kept
            next(islice(batches, done - 1, done), None)
            set_random_state(kept)
        return batches

    def _begin(self, epoch: int) -> None:
        seed = (self._seed + 7919 * (epoch + 1)) % 2**31
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        set_rnd(self._loader.dataset, seed)  # workers get theirs from torch's
        for owner in (self._loader, getattr(self._loader, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(seed)
