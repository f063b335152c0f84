"""Training over several processes (``torchrun``): each takes its share of every batch, gradients are averaged.

Gradients are averaged by hand instead of through ``DistributedDataParallel``: the discriminator runs several times
per step, and once without gradients of its own, which that wrapper does not allow.

A collective operation must be reached by all processes or by none, so whatever may end or skip a step is decided
together first (:func:`in_any_process`, :func:`mean_over_processes`), and a process that fails says so before it leaves
(:func:`leaving`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from medseg.errors import TrainingFailed, UsageError

_PATIENCE = timedelta(seconds=60)
"""How long a process that failed waits for the others to listen."""

_logger = logging.getLogger("medseg.training")


def world() -> tuple[int, int]:
    """This process and the number of processes; (0, 1) without ``torchrun``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this process writes the files of the run."""
    return world()[0] == 0


def local_device() -> torch.device:
    """The device of this process: the CUDA device with its local rank, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_processes() -> None:
    """Join the processes that ``torchrun`` started; nothing without it."""
    if "RANK" in os.environ and not dist.is_initialized():
        device = local_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop_processes() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def same_start(network: nn.Module) -> None:
    """Give every process the weights of the first one."""
    if world()[1] > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def in_any_process(flag: bool) -> bool:
    """Whether it is so in some process, said to all before anyone acts on it.

    Every exchange raises ``TrainingFailed`` if another process has failed: it takes part no longer.
    """
    return _together(float(flag)) > 0.0


def mean_over_processes(value: float) -> float:
    """Mean of a value over the processes, the same number in each."""
    return _together(value / world()[1])


def over_processes(values: Sequence[float], operation: Literal["SUM", "MAX"]) -> list[float]:
    """Sum or largest of each of any number of values over the processes."""
    if world()[1] == 1:
        return list(values)
    _together()
    numbers = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(numbers, getattr(dist.ReduceOp, operation))
    found: list[float] = numbers.tolist()
    return found


def require_same(**plan: float) -> None:
    """Refuse processes whose plans differ, in each of them, with the names of what differs."""
    values = list(plan.values())
    highest, negated_lowest = over_processes(values, "MAX"), over_processes([-value for value in values], "MAX")
    other = [name for name, high, low in zip(plan, highest, negated_lowest, strict=True) if high != -low]
    if other:
        raise UsageError(
            f"the processes of this training differ in {' and '.join(other)}; expected the same in each. Give all of "
            "them the same configuration, data and output folder"
        )


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, in one exchange.

    A parameter that has a gradient in some processes only gets one in all of them.
    """
    _, processes = world()
    if processes == 1:
        return
    _together()
    learning = [p for p in parameters if p.requires_grad]
    present = torch.tensor([float(p.grad is not None) for p in learning], device=learning[0].device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
    flat = torch.cat([present, *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(flat)
    counts, *means = torch.split(flat, [len(present), *(g.numel() for g in gradients)])
    for parameter, gradient, mean, count in zip(learning, gradients, means, counts.tolist(), strict=True):
        if count:
            parameter.grad = gradient.copy_((mean / processes).view_as(gradient))


@contextmanager
def leaving() -> Iterator[None]:
    """While open, an error in this process reaches the others where they next ask for each other."""
    try:
        yield
    except Exception as error:
        alone = world()[1] == 1
        if not alone and not (isinstance(error, TrainingFailed) and error.reason == "other-process"):
            try:
                _exchange(0.0, failed=True, patience=_PATIENCE)
            except RuntimeError as unheard:
                _logger.warning("the other processes could not be told: %s", unheard)
        raise


def _together(value: float = 0.0) -> float:
    """Sum of a value over the processes, in one small exchange that also tells who has failed."""
    processes = world()[1]
    if processes == 1:
        return value
    failed, total = _exchange(value)
    if failed:
        raise TrainingFailed(
            f"{failed:.0f} of the {processes} processes of this training failed, so the others stop, too; their own "
            "messages say why",
            "other-process",
        )
    return total


def _exchange(value: float, *, failed: bool = False, patience: timedelta | None = None) -> tuple[float, float]:
    """How many processes have failed, and the sum of a value: every small exchange fits every other."""
    numbers = torch.tensor([float(failed), value], dtype=torch.float64, device=_device())
    work = dist.all_reduce(numbers, async_op=True)
    assert work is not None
    if patience is None:
        work.wait()
    else:
        work.wait(patience)
    count, total = numbers.tolist()
    return count, total


def _device() -> torch.device:
    return local_device() if dist.get_backend() == "nccl" else torch.device("cpu")
