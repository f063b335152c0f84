"""Which case comes when, and with which random augmentation: a pure function of the seed and a counter.

Every drawn sample has a number k, counted from the start of the run over all epochs. Its case and the random
numbers of its augmentation depend on (seed, k) alone, so a run that starts again at sample k goes on exactly as
if it had never stopped, with any number of workers, and over several processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.data.utils import worker_init_fn
from monai.transforms import Compose
from torch.utils.data import Sampler

from medseg.errors import UsageError
from medseg.labels import MAPPING_KEY
from medseg.training.parallel import world
from medseg.transforms import LoadLabeld

__all__ = ["Draw", "DrawSampler", "TrainingDataset", "training_loader"]


class Draw(NamedTuple):
    """One drawn sample: its number in the run and the case it shows."""

    number: int
    case: int


class DrawSampler(Sampler[Draw]):
    """Endless stream of draws: shuffled passes over the cases, one after another.

    Parameters
    ----------
    cases
        Number of cases.
    length
        Draws per epoch (what ``len`` answers); the stream itself does not end.
    seed
        Of the shuffling.
    group
        Draws per batch of one process; with several processes each takes its own groups.
    rank, processes
        This process and their number.
    """

    def __init__(
        self, cases: int, length: int, seed: int = 0, group: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        if cases < 1:
            raise ValueError("found no case to train on, expected at least one; check the datalist and the fold")
        self.cases, self.length, self.seed = cases, length, seed
        self.group, self.rank, self.processes = group, rank, processes
        self.start = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        position = self.start
        while True:
            batch, inside = divmod(position, self.group)
            number = (batch * self.processes + self.rank) * self.group + inside
            yield Draw(number, self._case(number))
            position += 1

    def go_to(self, iteration: int) -> None:
        """Begin the next stream with the batch after ``iteration`` batches."""
        self.start = iteration * self.group

    def _case(self, number: int) -> int:
        order, place = divmod(number, self.cases)
        return int(np.random.default_rng((self.seed, order)).permutation(self.cases)[place])


class TrainingDataset(CacheDataset):
    """Cases in memory, preprocessed once; each draw is augmented with random numbers of its own.

    The cached tensors are handed to the random transforms without a copy, so these must not write in place.

    Parameters
    ----------
    data
        Cases with the paths of ``image`` and ``label``.
    transform
        The transforms: deterministic ones first (cached), then the random ones.
    seed
        Of the augmentation.
    cache
        Keyword arguments of :class:`monai.data.CacheDataset`.
    """

    def __init__(self, data: Sequence[Any], transform: Compose, seed: int = 0, **cache: Any) -> None:
        self.seed = seed
        _require_mapping_is_read(data, transform)
        super().__init__(data, transform, **{"copy_cache": False, "progress": False, "num_workers": 2, **cache})

    def __getitem__(self, index: int | slice | Sequence[int] | Draw) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        state = np.random.SeedSequence((self.seed, index.number)).generate_state(1)[0]
        self.transform.set_random_state(seed=int(state))
        return self._transform(index.case)


def _require_mapping_is_read(data: Sequence[Any], transform: Compose) -> None:
    """A datalist that maps its label values needs the transform that does it, or other structures would be learnt."""
    mapped = any(isinstance(case, Mapping) and MAPPING_KEY in case for case in data)
    if mapped and not any(isinstance(step, LoadLabeld) for step in transform.flatten().transforms):
        raise UsageError(
            f"the datalist has a {MAPPING_KEY}, which the bundle does not apply; load the labels with "
            "medseg.transforms.LoadLabeld in train#preprocessing_transforms of its configs/train.json"
        )


def training_loader(dataset: TrainingDataset, batch_size: int, iterations: int, *, num_workers: int = 0) -> DataLoader:
    """Loader of ``iterations`` batches per epoch; ``batch_size`` is per process, each process draws its own.

    Returns
    -------
    DataLoader
        Its sampler is a :class:`DrawSampler`.
    """
    rank, processes = world()
    sampler = DrawSampler(len(dataset), iterations * batch_size, dataset.seed, batch_size, rank, processes)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=True,
        timeout=600 if num_workers else 0,
        worker_init_fn=_begin_worker,
        generator=torch.Generator().manual_seed(dataset.seed),  # else every start would draw from the global state
    )


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C to the main process, which still waits for this worker's batch; SIGTERM is how it ends workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker_init_fn(number)
