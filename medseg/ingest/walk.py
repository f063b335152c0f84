"""Walk a tree of any shape: one folder at a time, links followed once, nothing opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from medseg.errors import UsageError

__all__ = ["NOWHERE", "Entry", "Folder", "walk"]

NOWHERE: Final = -1
"""Size of a link to content that is not there."""


class Entry(NamedTuple):
    """A regular file: its name in its folder, and what tells whether it has changed."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder and its regular files, sorted by name; links to nothing are listed with the size ``NOWHERE``.

    Parameters
    ----------
    path
        Absolute path, links not resolved.
    entries
        Files in it; pipes, sockets and devices are left out.
    whole
        Whether all files of the folder are listed, and not only those that were named.
    """

    path: str
    entries: Sequence[Entry]
    whole: bool = True


def walk(roots: Sequence[str], unreadable: list[str]) -> Iterator[Folder]:
    """All folders below some roots, each once; a root may be a file.

    Parameters
    ----------
    roots
        Absolute paths of folders or files.
    unreadable
        Folders that may not be listed are added here.

    Raises
    ------
    UsageError
        If a root does not exist.
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
