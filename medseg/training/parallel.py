"""Training over several processes (``torchrun``): each takes its share of every batch, gradients are averaged.

Gradients are averaged by hand instead of through ``DistributedDataParallel``: the discriminator runs several times
per step, and once without gradients of its own, which that wrapper does not allow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["average_gradients", "is_first", "local_device", "same_start", "start_processes", "stop_processes", "world"]


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


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, in one exchange."""
    _, processes = world()
    if processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
