"""Walk a tree of any shape, one folder at a time, links followed once, nothing opened; and zip archives in place.

The members of an archive are listed and copied one by one, never unpacked by their own names. A member is addressed as
``ARCHIVE.zip!/folder/name``.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from medseg.errors import Refusal, UsageError
from medseg.resources import max_volume_bytes

NOWHERE: Final = -1
"""Size of a link to content that is not there."""


class Entry(NamedTuple):
    """A regular file: its name in its folder, and what tells whether it has changed."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder by its absolute path, links not resolved, and its regular files sorted by name.

    Links to nothing are listed with the size ``NOWHERE``; pipes, sockets and devices are left out. ``whole`` says
    whether all files of the folder are listed, and not only those that were named.
    """

    path: str
    entries: Sequence[Entry]
    whole: bool = True


def walk(roots: Sequence[str], unreadable: list[str]) -> Iterator[Folder]:
    """All folders below some roots (absolute paths of folders or files), each once.

    Folders that may not be listed are added to ``unreadable``; a root that does not exist is a UsageError.
    """
    seen: set[tuple[int, int]] = set()
    files: dict[str, list[Entry]] = {}
    folders: list[str] = []
    for root in roots:
        try:
            found = os.stat(root)  # noqa: PTH116  paths stay strings: names on disk need not be valid text
        except OSError as error:
            raise UsageError(f"cannot read {root}: {error.strerror}; give existing files or folders") from error
        if stat.S_ISDIR(found.st_mode):
            folders.append(root)
        else:
            entry = Entry(os.path.basename(root), found.st_size, found.st_mtime_ns)  # noqa: PTH119
            files.setdefault(os.path.dirname(root), []).append(entry)  # noqa: PTH120
    for root in folders:
        yield from _below(root, seen, unreadable)
    for parent, entries in files.items():
        found = os.stat(parent)  # noqa: PTH116
        if (found.st_dev, found.st_ino) not in seen:
            yield Folder(parent, sorted(set(entries), key=lambda entry: entry.name), whole=False)


def _below(root: str, seen: set[tuple[int, int]], unreadable: list[str]) -> Iterator[Folder]:
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            found = os.stat(path)  # noqa: PTH116
            if (found.st_dev, found.st_ino) in seen:  # a link back up, or two roots that overlap
                continue
            seen.add((found.st_dev, found.st_ino))
            entries, folders = _list(path)
        except OSError:
            unreadable.append(path)
            continue
        waiting.extend(sorted(folders, reverse=True))
        yield Folder(path, entries)


def _list(path: str) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    folders: list[str] = []
    with os.scandir(path) as listing:
        for item in listing:
            try:
                if item.is_dir():
                    folders.append(item.path)
                    continue
                found = item.stat()
            except OSError:
                if item.is_symlink():  # its content is not here: whoever reads the folder must know
                    entries.append(Entry(item.name, NOWHERE, 0))
                continue  # else a file that has just gone
            if stat.S_ISREG(found.st_mode):
                entries.append(Entry(item.name, found.st_size, found.st_mtime_ns))
    entries.sort(key=lambda entry: entry.name)
    return entries, folders


MARK = "!/"
"""Stands between the path of an archive and the name of a member."""

_LARGEST_RATIO = 1100
"""Deflate cannot shrink more than 1032-fold; a member that claims more is damaged or a trap."""

_SUFFIX = ".zip"

_DAMAGE = (zipfile.BadZipFile, zlib.error, KeyError, OSError, RuntimeError, NotImplementedError, EOFError, ValueError)
"""What :mod:`zipfile` raises for damaged, encrypted or oddly compressed members."""


def is_archive_name(name: str) -> bool:
    """Whether a file is looked into, by its extension."""
    return name.lower().endswith(_SUFFIX)


def is_member(path: str) -> bool:
    """Whether a path names a member of an archive."""
    return f"{_SUFFIX}{MARK}" in path.lower()


def members(archive: str) -> list[Entry]:
    """The files in an archive; ``mtime_ns`` holds the CRC instead of a time. A damaged archive is ``unreadable``."""
    try:
        with zipfile.ZipFile(archive) as opened:
            files = [info for info in opened.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        name = os.path.basename(archive)  # noqa: PTH119
        raise Refusal("unreadable", f"{name} is not a readable zip archive ({error}); copy it again") from error
    return sorted((Entry(info.filename, info.file_size, info.CRC) for info in files), key=lambda entry: entry.name)


@contextmanager
def on_disk(paths: Sequence[str]) -> Iterator[list[str]]:
    """Paths that any reader can open: members of archives are copied to a temporary folder for the time being.

    Plain paths come back as they are. The copies have names of our own, so nothing an archive says can lead out of the
    folder. Refused are ``unreadable`` members (damaged, encrypted, missing) and those ``too-large`` for the limit.
    """
    if not any(is_member(path) for path in paths):
        yield list(paths)
        return
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        yield [_copied(path, Path(folder) / str(number)) for number, path in enumerate(paths)]


def _copied(path: str, target: Path) -> str:
    if not is_member(path):
        return path
    # The extension, by which readers choose the format, and nothing else of the member's name.
    endings = (".nii.gz", ".nii", ".mha", ".nrrd")
    extension = next((ending for ending in endings if path.lower().endswith(ending)), "")
    target = target.with_name(f"{target.name}-image{extension}")
    with _opened(path) as (opened, info):
        limit = max_volume_bytes()
        if info.file_size > limit or info.file_size > _LARGEST_RATIO * max(info.compress_size, 1024):
            message = f"a member of an archive expands to {info.file_size} bytes; the limit is {limit}; unpack it first"
            raise Refusal("too-large", message)
        with opened.open(info) as member, target.open("wb") as out:
            shutil.copyfileobj(member, out, 1 << 20)
    return str(target)


@contextmanager
def _opened(path: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """The archive of a member, and what it says of it."""
    cut = path.lower().index(f"{_SUFFIX}{MARK}") + len(_SUFFIX)
    archive, name = path[:cut], path[cut + len(MARK) :]
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened, opened.getinfo(name)
    except _DAMAGE as error:
        short = os.path.basename(archive)  # noqa: PTH119
        raise Refusal("unreadable", f"a member of {short} cannot be read ({error}); copy it again") from error


def start_of(path: str) -> bytes:
    """The first 132 bytes of a member, by which DICOM is known; ``unreadable`` if it is damaged or missing."""
    with _opened(path) as (opened, info), opened.open(info) as member:
        return member.read(132)
