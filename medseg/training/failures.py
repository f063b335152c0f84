"""Whatever goes wrong in a training ends it, under its own name."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from medseg.errors import MedsegError, Refusal, TrainingFailed

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = re.compile(r"out of memory|not enough memory|DefaultCPUAllocator|CUBLAS_STATUS_ALLOC_FAILED", re.I)
_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)")
_WORKER_TOLD = re.compile(r"DataLoader worker \(pid.*is killed by signal: Terminated")
_IN_WORKER = re.compile(r"Caught \w+ in .*Original Traceback \(most recent call last\):", re.S)
_CAUSED = "\nThe above exception was the direct cause of the following exception:\n"
_LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+)(?:: (.*))?$")
_REFUSAL = re.compile(r"^\[([a-z0-9-]+)\] ")

_REMEDIES = {
    "out-of-memory": "lower batch_size or patch_size, or take a device with more memory",
    "disk-full": "make room, or choose another folder with --output",
    "output-unusable": "give the output folder the permission to be written, or choose another one with --output",
    "worker-died": "it was killed, most often for want of memory: lower num_workers, patch_size or batch_size",
    "other-process": "look at the messages of that process",
}


@contextmanager
def exceptions_leave(*engines: Engine) -> Iterator[None]:
    """While open, an exception inside one of the engines leaves its ``run``, whatever its handlers do about it.

    ignite hands an exception to the handlers of ``EXCEPTION_RAISED`` instead of raising it, if there are any, and then
    goes on as if the run had ended well. The last of them raises it here.
    """
    raising = [engine.add_event_handler(Events.EXCEPTION_RAISED, _raise) for engine in engines]
    try:
        yield
    finally:
        for handler in raising:
            handler.remove()


def _raise(engine: Engine, error: BaseException) -> None:  # noqa: ARG001  the signature of ignite's handlers
    raise error


def named_failure(error: Exception, where: str, output: Path, *, resumable: bool) -> MedsegError:
    """The error to end a training with: medseg's own as it is, any other under its name and with what to do.

    What wraps its cause (a transform, a bundle's configuration, a worker) is taken off. ``where`` is where the run was,
    such as ``"in iteration 3 of 100 (epoch 1)"``; what cannot be written to its folder ``output`` is told apart from
    what cannot be read elsewhere; ``resumable`` is whether there is a checkpoint to go on from.
    """
    root = _root(error)
    if isinstance(root, MedsegError) and not _IN_WORKER.search(str(root)):
        return root
    name, first = _described(root)
    reason = _reason(error, root, first, output)
    line = f"{name}: {first}" if first else name
    remedy = _REMEDIES.get(reason, "--debug shows where it comes from")
    go_on = "go on from the last checkpoint with --resume" if resumable else "start again; nothing has been saved yet"
    message = f"the training ended {where} with {line}. What to do: {remedy}; then {go_on}"
    return TrainingFailed(message, reason, name)


def record_of(error: MedsegError) -> dict[str, str]:
    """What ``run.json`` says about such an end: a stable ``reason``, the ``error``'s class and its ``message``."""
    kind = type(error).__name__
    if isinstance(error, TrainingFailed):
        return {"reason": error.reason, "error": error.error, "message": str(error)}
    reason = error.code if isinstance(error, Refusal) else re.sub(r"(?<!^)(?=[A-Z])", "-", kind).lower()
    return {"reason": reason, "error": kind, "message": str(error)}


def ended_by_signal(error: Exception) -> bool:
    """Whether a loader's worker was ended by SIGTERM: a batch system sends it to the whole group of processes."""
    return bool(_WORKER_TOLD.search(str(error)))


def _root(error: BaseException) -> BaseException:
    """MONAI wraps what fails inside a transform or a configuration in a ``RuntimeError`` of its own, once or twice."""
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    return error


def _described(error: BaseException) -> tuple[str, str]:
    """Name of the class and first line; what a worker raised arrives as the text of its traceback."""
    name, text = type(error).__name__, str(error)
    if _IN_WORKER.search(text):
        text = text.split(_CAUSED, 1)[0].strip().splitlines()[-1]
        if match := _LAST_LINE.match(text):
            name, text = match[1], match[2] or ""
    return name, next((line.strip() for line in text.splitlines() if line.strip()), "")[:500]


def _reason(error: BaseException, root: BaseException, message: str, output: Path) -> str:
    if isinstance(root, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(message):
        return "out-of-memory"
    if _WORKER_DIED.search(message):
        return "worker-died"
    if refused := _REFUSAL.match(message):
        return refused[1]
    cause: BaseException | None = error
    while cause is not None:  # what it was raised from, and what was being handled then
        if isinstance(cause, OSError):
            if cause.errno in _DISK_FULL:
                return "disk-full"
            name = cause.filename
            if isinstance(name, str | Path) and Path(name).absolute().is_relative_to(output.absolute()):
                return "output-unusable"
        cause = cause.__cause__ or cause.__context__
    return "unexpected"
