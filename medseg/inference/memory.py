"""Memory that this process may use: what the device can give now, divided among those that work beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

_ASSUMED_BYTES = 4 << 30
_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_LOCAL_PROCESSES = "LOCAL_WORLD_SIZE"
"""Environment variable by which ``torchrun`` tells how many processes it has started on this machine."""

_told: int | None = None


def set_sharers(count: int) -> None:
    """Tell this process how many processes, itself included, share the memory of its device."""
    global _told  # a fact of the process, as the number of threads of torch is
    _told = max(1, count)


def sharers() -> int:
    """How many processes share the memory: what was told, or what ``torchrun`` says, or this one alone."""
    if _told is not None:
        return _told
    given = os.environ.get(_LOCAL_PROCESSES, "")
    return max(1, int(given)) if given.isdecimal() else 1


def share_bytes(device: str = "cpu") -> int:
    """This process's share of what a device can give now."""
    return available_bytes(device) // sharers()


def available_bytes(device: str = "cpu") -> int:
    """Memory that a device can give now to all processes; 4 GiB where it does not say.

    On the CPU a limit of the control group counts too, as containers and batch systems set it: beyond it the process
    is killed although the machine has memory left.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_machine_bytes(), *_group_bytes()])


def _machine_bytes() -> int:
    with suppress(OSError, ValueError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _ASSUMED_BYTES


def _group_bytes() -> Iterator[int]:
    """What this process's control group (version 2) and those around it leave."""
    place = ""
    with suppress(OSError):
        found = [line[3:] for line in _GROUP.read_text().splitlines() if line.startswith("0::")]
        place = found[0].strip("/") if found else ""
    parts = place.split("/") if place else []
    for depth in range(len(parts) + 1):
        folder = _GROUPS.joinpath(*parts[:depth])
        with suppress(OSError, ValueError):  # no limit: no such file, or the word "max"
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            yield max(0, limit - used + _reclaimable_bytes(folder))


def _reclaimable_bytes(folder: Path) -> int:
    """Files that the group has read and not used lately: counted as used, given back at need."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0
