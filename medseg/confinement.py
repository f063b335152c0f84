"""A wall of the system around a process that runs somebody's bundle: it can write only where its results belong.

The audit judges what a bundle says; this holds although the audit be wrong. Landlock (Linux 5.13 and later) denies to
make, change, move and remove files outside the given folders, TCP (6.7), and signals and abstract sockets to other
processes (6.12); seccomp denies sockets of every other kind. Both hold for the process, its later threads and all that
it starts, and cannot be taken back. They are asked of the kernel here, since the bindings that exist are younger than
the calls, which do not change. Reading, starting programs and changing modes and times of files stay free.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

_CREATE_RULESET: Final = 444  # Landlock's calls have the same numbers on every processor
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_BENEATH: Final = 1
_PORT: Final = 2

_WRITE_FILE: Final = 1 << 1
_REMOVE: Final = 1 << 4 | 1 << 5
_MAKE_DEVICES: Final = 1 << 6 | 1 << 11
_MAKE: Final = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # folders, files, sockets, pipes, links
_MOVE: Final = 1 << 13  # from one folder to another; before version 2 no process under a rule may do that
_TRUNCATE: Final = 1 << 14
_BIND: Final = 1 << 0
_CONNECT: Final = 1 << 1
_ABSTRACT_SOCKETS: Final = 1 << 0
_SIGNALS: Final = 1 << 1

_DEVICES: Final = (
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts",
    "/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/accel",
)  # fmt: skip
"""What is opened for writing and holds no files: the terminal, and cards that compute."""

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  semaphores and arrays of worker processes

_COMPILED: Final = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
"""Where compiled kernels are kept: nobody else shall run what a process behind the wall has left there."""

_NO_NEW_PRIVILEGES: Final = 38
_SECCOMP_FILTER: Final = 1
_ALL_THREADS: Final = 1 << 0
_FULL_SPEED: Final = 1 << 2  # older kernels slow a filtered process down against Spectre, unless told not to
_PROCESSORS: Final = {"x86_64": (0xC000003E, 317, 41, 42), "aarch64": (0xC00000B7, 277, 198, 203)}
"""Of each processor its number in the audit, and those of the calls ``seccomp``, ``socket`` and ``connect``."""

_LOAD: Final = 0x20  # steps of a filter: load a word; compare it; answer
_EQUALS: Final = 0x15
_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_OTHER_FACE: Final = 0x40000000  # the same calls of x86-64 under other numbers
_IO_URING: Final = 425  # opens sockets without calling ``socket``
_ALLOW: Final = 0x7FFF0000
_DENY: Final = 0x00050000 | errno.EACCES


@dataclass(frozen=True)
class Reach:
    """What a confined process may still reach.

    ``listen`` and ``connect`` are TCP ports, None for any. If both are empty there are no sockets but those of Unix,
    and these can be connected only with ``workers``, which are this process's own.
    """

    listen: tuple[int, ...] | None = ()
    connect: tuple[int, ...] | None = ()
    workers: bool = False

    @property
    def is_offline(self) -> bool:
        """Whether no port is open."""
        return self.listen == () == self.connect


NOTHING: Final = Reach()
WORKERS: Final = Reach(workers=True)
NETWORK: Final = Reach(None, None)


def ports_of(urls: Iterable[str]) -> tuple[int, ...] | None:
    """Ports by which servers are reached, that of name servers with them; None, any, where the user has set proxies."""
    from urllib.request import getproxies  # takes longer than the rest of this file

    parts = [urlsplit(url) for url in urls]
    if parts and getproxies():
        return None
    return (53, *(part.port or (80 if part.scheme == "http" else 443) for part in parts))


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("others", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step)))


def landlock_version() -> int:
    """Version of Landlock that this system has; 0 without it."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION))


def can_filter_sockets() -> bool:
    """Whether sockets can be denied here."""
    return sys.platform.startswith("linux") and platform.machine() in _PROCESSORS


def lacking() -> tuple[str, ...]:
    """What this system cannot deny, for people; empty if there is nothing."""
    version, notes = landlock_version(), []
    if version == 0:
        notes.append("this system has no Landlock (Linux 5.13): a bundle is held by the audit alone, not by the system")
    elif version < 3:
        notes.append(f"Landlock {version} cannot keep a process from emptying files elsewhere (3, Linux 6.2, can)")
    if not can_filter_sockets():
        notes.append("sockets cannot be denied here: a bundle is kept off the network by the audit alone")
    return tuple(notes)


def confine(writable: Iterable[str | os.PathLike[str]], reach: Reach = NOTHING) -> tuple[str, ...]:
    """Let this process and all that it starts write only to some folders, and reach only what ``reach`` says.

    Beside the folders there is one of its own for temporary files, ``TMPDIR``, which goes with the process. To be
    called while there is one thread: those that run already are not held.

    Parameters
    ----------
    reach
        What of the network is needed.

    Returns
    -------
    tuple of str
        What this system could not deny, as :func:`lacking` has it. No system is refused.
    """
    notes = lacking()
    version = landlock_version()
    if version:
        folders = [Path(folder).resolve(strict=True) for folder in writable]
        folders += _private_folder(folders)
        if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
            notes += (f"{threads - 1} threads that ran before are not held by Landlock",)
        try:
            _restrict_files(version, folders, reach)
        except OSError as error:
            notes += (f"a bundle is held by the audit alone, not by the system: Landlock failed ({error})",)
    if reach.is_offline and can_filter_sockets():
        try:
            _deny_sockets(workers=reach.workers)
        except OSError as error:
            notes += (f"a bundle is kept off the network by the audit alone: seccomp failed ({error})",)
    return notes


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: Any) -> int:
    words = (ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments))
    found: int = _libc().syscall(*words)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


# --- files, ports and other processes: Landlock ---------------------------------------------------------------------


def _restrict_files(version: int, folders: Iterable[Path], reach: Reach) -> None:
    in_files = _WRITE_FILE | (_TRUNCATE if version >= 3 else 0)
    in_folders = in_files | _REMOVE | _MAKE | (_MOVE if version >= 2 else 0)
    ports = {_BIND: reach.listen, _CONNECT: reach.connect} if version >= 4 else {}
    denied = sum(right for right, allowed in ports.items() if allowed is not None)
    rules = _Ruleset(in_folders | _MAKE_DEVICES, denied, _ABSTRACT_SOCKETS | _SIGNALS)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    try:
        for place in (*folders, *_there(_SHARED_MEMORY)):
            _allow(ruleset, place, in_folders)
        for place in _there(*_DEVICES):
            _allow(ruleset, place, in_files)
        for right, allowed in ports.items():
            for port in allowed or ():
                _call(_ADD_RULE, ruleset, _PORT, ctypes.byref(_Port(right, port)), 0)
        _give_up_privileges()
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _there(*patterns: str) -> list[Path]:
    return [found for pattern in patterns for found in Path("/").glob(pattern.removeprefix("/"))]


def _allow(ruleset: int, place: Path, rights: int) -> None:
    handle = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_ADD_RULE, ruleset, _BENEATH, ctypes.byref(_Beneath(rights, handle)), 0)
    finally:
        os.close(handle)


def _give_up_privileges() -> None:
    """No program that is started gains rights by its file (setuid), which both walls ask for."""
    if _libc().prctl(_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# --- sockets: seccomp -----------------------------------------------------------------------------------------------


def _deny_sockets(*, workers: bool) -> None:
    """Deny every socket but Unix ones; without ``workers`` also to connect these, to a desktop's bus or to Docker."""
    processor, seccomp, socket, connect = _PROCESSORS[platform.machine()]
    calls = [_IO_URING, *([] if workers else [connect])]
    # number, processor and first argument of a call lie at bytes 0, 4 and 16 of what the kernel shows
    steps: list[Any] = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, processor), (_RETURN, 0, 0, _DENY), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, _OTHER_FACE), (_RETURN, 0, 0, _DENY)]
    for call in calls:
        steps += [(_EQUALS, 0, 1, call), (_RETURN, 0, 0, _DENY)]
    steps += [(_EQUALS, 0, 3, socket), (_LOAD, 0, 0, 16), (_EQUALS, 1, 0, AF_UNIX), (_RETURN, 0, 0, _DENY)]
    steps += [(_RETURN, 0, 0, _ALLOW)]
    program = _Program(len(steps), (_Step * len(steps))(*steps))
    _give_up_privileges()
    _call(seccomp, _SECCOMP_FILTER, _ALL_THREADS | _FULL_SPEED, ctypes.byref(program))


# --- temporary files ------------------------------------------------------------------------------------------------


def _private_folder(others: Sequence[Path]) -> list[Path]:
    """A new folder that is now the one for temporary files; none if there is no place for it.

    A process behind the wall cannot remove it, since it lies in a folder that is not its own: a child that is not
    confined waits for its end, however that comes, and does. To fork also ends the threads that OpenBLAS started when
    numpy was imported (it starts them again when they are needed), which Landlock would not hold.
    """
    try:
        base = tempfile.gettempdir()
    except FileNotFoundError:
        if not others:
            return []
        base = str(others[0])
    folder = tempfile.mkdtemp(prefix="medseg-", dir=base)
    reading, _ = os.pipe()  # the end for writing stays open for as long as this process, or one forked from it, lives
    if os.fork() == 0:
        _remove_at_end(folder, reading)
    os.close(reading)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    for name in _COMPILED:
        os.environ[name] = os.path.join(folder, name.lower())  # noqa: PTH118
    return [Path(folder)]


def _remove_at_end(folder: str, pipe: int) -> NoReturn:
    try:
        os.setsid()  # Ctrl-C is not for this process
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)  # who reads the output of the command need not wait for this process
        for handle in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if handle > 2 and handle != pipe:
                with suppress(OSError):  # that of the list itself
                    os.close(handle)
        while os.read(pipe, 4096):
            pass
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)
