"""Scan any tree of studies into one record per volume, reading headers only, and only of files that have changed.

The walk, the headers and the verdicts are three steps: files whose size and time are known are not opened again, and
a series whose files are unchanged is not judged again. A series is judged by all its files within the scanned paths,
wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from medseg.errors import Refusal
from medseg.ingest import archives
from medseg.ingest.database import FoundFile, IndexDatabase, SeriesGroup
from medseg.ingest.headers import Header
from medseg.ingest.leftovers import Leftover, note_on, orphans
from medseg.ingest.names import first_of_pair
from medseg.ingest.own import warn_of_own
from medseg.ingest.parsing import LEFTOVERS, parse, record_from_json, record_of_leftovers, record_to_json
from medseg.ingest.processes import bounded_map, usable_cores
from medseg.ingest.records import SeriesRecord, record_of_stack, unforeseen
from medseg.ingest.stacks import Stack, split
from medseg.ingest.walk import Entry, walk

__all__ = ["scan"]

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
PathLike = str | os.PathLike[str]

_BATCH_FILES = 256
_FEW_BATCHES = 8
_MOST_WORKERS = 8


def scan(
    paths: PathLike | Iterable[PathLike],
    *,
    database: PathLike | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    own: list[SeriesRecord] | None = None,
) -> list[SeriesRecord]:
    """One record per volume below some paths: each stack of a DICOM series, each image file; usable or refused.

    Parameters
    ----------
    paths
        Folders, files or zip archives; nested and mixed as they come.
    database
        Where to keep the index (SQLite), so that the next scan reads only what has changed. It holds no names and
        no dates. By default nothing is kept.
    progress
        Called with the number of files dealt with so far, and 0, since the number of all files is not known.
    workers
        Number of processes that read headers; by default the cores that this process may use, eight at most.
    own
        Files that medseg itself wrote as results are no inputs: they are left out with a warning, and added here.

    Returns
    -------
    list of SeriesRecord
        Sorted by path; with case ids that are unique within this list.

    Raises
    ------
    UsageError
        If a path does not exist, or ``database`` cannot be used.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    whole = [first_of_pair(path) for path in given]
    roots = {os.path.abspath(path): path for path in whole}  # noqa: PTH100  links are not resolved
    with IndexDatabase(database) as index:
        _Update(index, progress).run(list(roots), workers or min(usable_cores(), _MOST_WORKERS))
        records = _judged(index)
    found = _without_own([_as_given(record, roots) for record in records], own)
    return _with_unique_ids(sorted(found, key=lambda record: (record.files[0], record.case_id)))


class _Update:
    """Brings the index up to date with the files on disk."""

    def __init__(self, index: IndexDatabase, progress: Progress | None) -> None:
        self._index = index
        self._progress = progress or (lambda _done, _total: None)
        self._done = 0
        self._named: list[tuple[int, list[str]]] = []

    def run(self, roots: Sequence[str], workers: int) -> None:
        unreadable: list[str] = []
        batches = _batched(self._changed(roots, unreadable))
        first = list(islice(batches, _FEW_BATCHES))
        if len(first) < _FEW_BATCHES:  # starting processes would take longer
            workers = 1
        under_way: deque[list[FoundFile]] = deque()
        for found in bounded_map(parse, _paths(chain(first, batches), under_way), workers):
            self._index.add(under_way.popleft(), found)
            self._advance(len(found))
        for folder, names in self._named:
            self._index.include_named(folder, names)
        if not unreadable:
            for root in roots:
                self._index.forget_folders_below(root)
        for path in unreadable:
            _log.warning("cannot list the folder %s; its files are not in the index", path)

    def _advance(self, files: int) -> None:
        self._done += files
        self._progress(self._done, 0)

    def _changed(self, roots: Sequence[str], unreadable: list[str]) -> Iterator[FoundFile]:
        for folder in walk(roots, unreadable):
            opened = [entry for entry in folder.entries if archives.is_archive_name(entry.name)]
            for entry in opened:
                yield from self._changed_in_archive(os.path.join(folder.path, entry.name), entry)  # noqa: PTH118
            plain = [entry for entry in folder.entries if not archives.is_archive_name(entry.name)]
            yield from self._compare(folder.path, f"{folder.path.rstrip('/')}/", plain, whole=folder.whole)

    def _changed_in_archive(self, path: str, entry: Entry) -> Iterator[FoundFile]:
        number, stamp = self._index.folder(path + archives.MARK)
        if stamp == (entry.size, entry.mtime_ns):
            self._index.include(number)
            self._advance(len(self._index.known(number)))
            return
        try:
            listed = archives.members(path)
        except Refusal:
            listed = [Entry("", entry.size, entry.mtime_ns)]  # one entry that stands for the damaged archive
        self._index.remember_archive(number, entry.size, entry.mtime_ns)
        yield from self._compare(path + archives.MARK, path + archives.MARK, listed, whole=True)

    def _compare(self, folder: str, prefix: str, entries: Sequence[Entry], *, whole: bool) -> Iterator[FoundFile]:
        """Files that are new or changed; what is gone is dropped, and the folder comes into scope."""
        number, _ = self._index.folder(folder)
        known = self._index.known(number)
        stale = []
        changed = []
        for entry in entries:
            before = known.pop(entry.name, None)
            if before is not None and before[1:] == (entry.size, entry.mtime_ns):
                continue
            if before is not None:
                stale.append(before[0])
            changed.append(FoundFile(number, prefix + entry.name, entry))
        self._index.forget_files([*stale, *(file for file, _, _ in known.values())] if whole else stale)
        if whole:
            self._index.include(number)
        else:
            self._named.append((number, [entry.name for entry in entries]))
        self._advance(len(entries) - len(changed))
        yield from changed


def _batched(files: Iterable[FoundFile]) -> Iterator[list[FoundFile]]:
    iterator = iter(files)
    while batch := list(islice(iterator, _BATCH_FILES)):
        yield batch


def _paths(batches: Iterable[list[FoundFile]], under_way: deque[list[FoundFile]]) -> Iterator[list[str]]:
    """The paths of each batch; the batch itself joins those whose headers are being read."""
    for batch in batches:
        under_way.append(batch)
        yield [file.path for file in batch]


def _judged(index: IndexDatabase) -> list[SeriesRecord]:
    """Records of all series in scope; those whose files are unchanged come from the index."""
    stored = index.records()
    records: list[SeriesRecord] = []
    leftovers: list[Leftover] = []
    for group in index.groups():
        if group.key == LEFTOVERS:
            leftovers = [Leftover(*json.loads(payload)) for payload in index.headers(group.series)]
            continue
        payloads = stored.get((group.series, group.fingerprint))
        if payloads is None:
            payloads = [record_to_json(record) for record in _judge(index, group)]
            index.store_records(group, payloads)
        records.extend(record_from_json(json.loads(payload)) for payload in payloads)
    return _with_leftovers(records, leftovers)


def _with_leftovers(records: list[SeriesRecord], leftovers: Sequence[Leftover]) -> list[SeriesRecord]:
    """Records with a note where files beside their slices could not be read, and one for each folder of such files."""
    if not leftovers:
        return records
    by_folder: dict[str, list[Leftover]] = defaultdict(list)
    for left in leftovers:
        by_folder[os.path.dirname(left.path)].append(left)  # noqa: PTH120
    folders: set[str] = set()
    noted: list[SeriesRecord] = []
    for record in records:
        if record.kind == "dicom":
            own = {os.path.dirname(file) for file in record.files}  # noqa: PTH120
            folders |= own
            notes = note_on((left for folder in own for left in by_folder.get(folder, ())), record.files)
            record = replace(record, notes=(*record.notes, *notes)) if notes and record.usable else record
        noted.append(record)
    return [*noted, *(record_of_leftovers(folder, found) for folder, found in orphans(leftovers, folders).items())]


def _judge(index: IndexDatabase, group: SeriesGroup) -> list[SeriesRecord]:
    payloads = index.headers(group.series)
    if group.key.startswith("f"):
        return [record_from_json(json.loads(payload)) for payload in payloads]
    headers = [Header.from_json(payload) for payload in payloads]
    try:
        stacks = split(headers)
    except Exception as error:  # noqa: BLE001 - one series that nobody foresaw must not end the index of an archive
        stacks = [Stack(tuple(headers), None, False, "unreadable", unforeseen(error))]
    return [replace(record_of_stack(stack), acquired=_acquired(stack.headers[0])) for stack in stacks]


def _without_own(records: Sequence[SeriesRecord], own: list[SeriesRecord] | None) -> list[SeriesRecord]:
    """Records but those of what medseg wrote, of which the log tells."""
    found = [record for record in records if record.reason == "own-output"]
    warn_of_own([record.source for record in found])
    if own is not None:
        own += found
    return [record for record in records if record.reason != "own-output"]


def _acquired(header: Header) -> float | None:
    """Shifted day and time of day as a number of days; ``None`` where the header has no date."""
    try:
        day = int(header.facts["acquisition date"])
        clock = header.facts.get("acquisition time", "").partition(".")[0].zfill(6)  # HHMMSS
        return day + (int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:6])) / 86400
    except (KeyError, ValueError):
        return None


def _as_given(record: SeriesRecord, roots: dict[str, str]) -> SeriesRecord:
    """Paths as the caller wrote them, not as the index keeps them."""
    root = next((root for root in roots if _is_below(record.files[0], root)), None)
    if root is None or roots[root] == root:
        return record
    given = roots[root]
    files = tuple(given + file[len(root) :] if _is_below(file, root) else file for file in record.files)
    source = given + record.source[len(root) :] if _is_below(record.source, root) else record.source
    return replace(record, files=files, source=source)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith((root.rstrip("/") + "/", root + archives.MARK))


def _with_unique_ids(records: Sequence[SeriesRecord]) -> list[SeriesRecord]:
    """Two inputs of one name in one run get a part of the hash of their paths."""
    named = [record if record.case_id else replace(record, case_id=Path(record.source).name) for record in records]
    counts = Counter(record.case_id for record in named)
    return [
        record if counts[record.case_id] == 1 else replace(record, case_id=f"{record.case_id}-{_path_hash(record)}")
        for record in named
    ]


def _path_hash(record: SeriesRecord) -> str:
    return hashlib.sha256(record.files[0].encode("utf-8", "surrogateescape")).hexdigest()[:8]
