"""Scan any tree of studies into one record per volume, reading headers only, and only of files that have changed.

The walk, the headers (read in worker processes, a batch of files at a time) and the verdicts are three steps: files
whose size and time are known are not opened again, and a series whose files are unchanged is not judged again. A
series is judged by all its files within the scanned paths, wherever they lie.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from medseg.errors import ReasonCode, Refusal, UsageError
from medseg.files import shown
from medseg.ingest import walk as archives
from medseg.ingest.dicom_elements import first_element
from medseg.ingest.index_database import DamagedIndex, Found, FoundFile, IndexDatabase, SeriesGroup
from medseg.ingest.left_out import (
    Leftover,
    is_own_output,
    is_written_class,
    leftover_from,
    leftover_of,
    warn_of_own,
    with_leftovers,
)
from medseg.ingest.record import SeriesRecord, case_id_of, dicom_header_of, first_of_pair, image_kind, is_apple_double
from medseg.ingest.walk import Entry, walk
from medseg.resources import bounded_map, usable_cores

if TYPE_CHECKING:
    from medseg.ingest.dicom_header import Header

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
PathLike = str | os.PathLike[str]
_Read = TypeVar("_Read")

_LEFTOVERS = "x"
"""Key of all files that no reader knows but that may have been slices."""

_BATCH_FILES = 256
_FEW_BATCHES = 8
_MOST_WORKERS = 8
_KEY_DIGITS = 32
_SHIFT_DAYS = 36500


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
    whole = [first_of_pair(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    roots = {os.path.abspath(path): path for path in whole}  # noqa: PTH100  links are not resolved
    try:
        with IndexDatabase(database) as index:
            _Update(index, progress).run(list(roots), workers or min(usable_cores(), _MOST_WORKERS))
            records = [_as_written(record, roots) for record in _judged(index)]
    except (sqlite3.Error, DamagedIndex) as error:
        if database is None:
            raise
        remedy = "make room, check its permissions, or delete it: it is then filled anew"
        raise UsageError(f"the index {shown(database)} cannot be used ({error}); {remedy}") from error
    ours = [record for record in records if record.reason == "own-output"]
    warn_of_own([record.source for record in ours])
    if own is not None:
        own += ours
    inputs = [record for record in records if record.reason != "own-output"]
    return _with_unique_ids(sorted(inputs, key=lambda record: (record.files[0], record.case_id)))


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
        read, kept = tee(chain(first, batches))
        headers = bounded_map(_parse, ([file.path for file in batch] for batch in read), workers)
        for batch, found in zip(kept, headers, strict=True):
            self._index.add(batch, found)
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
            plain = []
            for entry in folder.entries:
                if archives.is_archive_name(entry.name):
                    yield from self._changed_in_archive(os.path.join(folder.path, entry.name), entry)  # noqa: PTH118
                else:
                    plain.append(entry)
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
        known, stale, changed = self._index.known(number), [], []
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


def _judged(index: IndexDatabase) -> list[SeriesRecord]:
    """Records of all series in scope; those whose files are unchanged come from the index."""
    stored = index.records()
    records: list[SeriesRecord] = []
    leftovers: list[Leftover] = []
    for group in index.groups():
        if group.key == _LEFTOVERS:
            leftovers = [_stored(_leftover, payload) for payload in index.headers(group.series)]
            continue
        payloads = stored.get((group.series, group.fingerprint))
        if payloads is None:
            payloads = _judge(index, group)
            index.store_records(group, payloads)
        records.extend(_stored(SeriesRecord.from_json, payload) for payload in payloads)
    return with_leftovers(records, leftovers) if leftovers else records


def _leftover(payload: str) -> Leftover:
    path, why = json.loads(payload)
    return Leftover(str(path), str(why))


def _stored(read: Callable[[str], _Read], payload: str) -> _Read:
    """What the index keeps of a file or a series: other things may stand there, if somebody else has written it."""
    try:
        return read(payload)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedIndex(f"it holds what medseg has not written: {error}") from error


def _judge(index: IndexDatabase, group: SeriesGroup) -> list[str]:
    """The records of one series, as JSON."""
    payloads = list(index.headers(group.series))
    if group.key.startswith("f"):  # an image file, whose record was made when its header was read
        return payloads
    from medseg.ingest.dicom_header import Header  # not needed for other image files
    from medseg.ingest.stacks import Stack, record_of_stack, split

    headers = [_stored(Header.from_json, payload) for payload in payloads]
    try:
        stacks = split(headers)
    except Exception as error:  # noqa: BLE001 - one series that nobody foresaw must not end the index of an archive
        stacks = [Stack(tuple(headers), None, "unreadable", _unforeseen(error))]
    return [replace(record_of_stack(stack), acquired=_acquired(stack.headers[0])).to_json() for stack in stacks]


def _acquired(header: Header) -> float | None:
    """Shifted day and time of day as a number of days; ``None`` where the header has no date."""
    try:
        day = int(header.attributes["acquisition date"])
        clock = header.attributes.get("acquisition time", "").partition(".")[0].zfill(6)  # HHMMSS
        return day + (int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:6])) / 86400
    except (KeyError, ValueError):
        return None


def _as_written(record: SeriesRecord, roots: dict[str, str]) -> SeriesRecord:
    """Paths as the caller wrote them, not as the index keeps them."""
    root = next((root for root in roots if _is_below(record.files[0], root)), None)
    if root is None or roots[root] == root:
        return record
    source, *files = (
        roots[root] + path[len(root) :] if _is_below(path, root) else path for path in (record.source, *record.files)
    )
    return replace(record, files=tuple(files), source=source)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith((root.rstrip("/") + "/", root + archives.MARK))


def _with_unique_ids(records: Sequence[SeriesRecord]) -> list[SeriesRecord]:
    """Two inputs of one name in one run get a part of the hash of their paths."""
    named = [record if record.case_id else replace(record, case_id=Path(record.source).name) for record in records]
    counts = Counter(record.case_id for record in named)
    ids = ((record.case_id, hashlib.sha256(record.files[0].encode("utf-8", "surrogateescape"))) for record in named)
    unique = (name if counts[name] == 1 else f"{name}-{digest.hexdigest()[:8]}" for name, digest in ids)
    return [replace(record, case_id=name) for record, name in zip(named, unique, strict=True)]


def _parse(paths: Sequence[str]) -> list[Found]:
    """Read the headers of some files. What goes in and out are plain strings, which pass to a process fast."""
    return [_found(path) for path in paths]


def _found(path: str) -> Found:
    try:
        return _of_member(path) if archives.is_member(path) else _of_path(path, path)
    except Refusal as refusal:
        return _of_refused(path, refusal.code, refusal.message)
    except OSError as error:
        if image_kind(path) is None:
            return _of_leftover(leftover_of(path))
        message = f"the file cannot be opened ({error.strerror}); check the link or its permissions"
        return _of_refused(path, "unreadable", message)
    except Exception as error:  # noqa: BLE001 - one file that no reader foresaw must not end the index of an archive
        return _of_refused(path, "unreadable", _unforeseen(error))


def _of_member(path: str) -> Found:
    if image_kind(path) is None and first_element(start := archives.start_of(path)) is None:
        return _of_leftover(leftover_from(path, start))
    with archives.on_disk([path]) as (copy,):
        return _of_path(copy, path)


def _of_path(path: str, shown: str) -> Found:
    """Key and payload of the file at ``path``, which the index knows as ``shown``.

    The content decides: some scanners name their DICOM files ``.img``, some archives ``.nii``.
    """
    header = dicom_header_of(path)
    if header is None:
        if is_apple_double(shown, path):
            return "", ""
        if image_kind(shown) is None:
            return _of_leftover(leftover_of(path, shown))
        return _of_own(shown) if is_own_output(path) else _of_image(path, shown)
    if header.is_directory:
        return "", ""
    if is_written_class(header.sop_class_uid) and is_own_output(path):
        return _of_own(shown)
    uids = header.study_uid_hash[:_KEY_DIGITS] + header.series_uid_hash[:_KEY_DIGITS]
    date = header.attributes.get("acquisition date")
    if date is not None:
        header.attributes["acquisition date"] = _shifted_day(date, header.patient_hash)
    return f"d{uids}" if header.series_uid_hash else _key("p", shown), header._replace(path=shown).to_json()


def _of_leftover(left: Leftover | None) -> Found:
    return ("", "") if left is None else (_LEFTOVERS, json.dumps(left))


def _key(kind: str, path: str) -> str:
    """Key of a file that is a series of its own: in ASCII, since a name on disk need not be valid text."""
    return kind + path.encode("unicode_escape").decode("ascii")


def _of_image(path: str, shown: str) -> Found:
    from medseg.ingest.image_files import inspect_image  # nibabel is not needed for a tree of DICOM files

    record = inspect_image(path)
    if path != shown:
        record = replace(record, case_id=case_id_of(shown), source=shown, files=(shown,))
    elif record.files[0] != path:
        return "", ""  # the header of the pair is there, and stands for both
    return _key("f", shown), record.to_json()


def _of_refused(path: str, code: ReasonCode, message: str) -> Found:
    record = SeriesRecord(case_id_of(path), path, image_kind(path) or "dicom", (path,), reason=code, message=message)
    return _key("f", path), record.to_json()


def _unforeseen(error: Exception) -> str:
    """A message that names the class alone: the text of an error may quote the header, and so the patient."""
    _log.debug("a reader failed", exc_info=error)
    name = type(error).__name__
    return f"the reader failed on it ({name}); write it again from its source, and report the fault of the reader"


def _of_own(path: str) -> Found:
    return _of_refused(path, "own-output", "medseg wrote this file as a result; it is no input")


@lru_cache(maxsize=4096)
def _shifted_day(date: str, patient_hash: str) -> str:
    """A day number with a secret shift per patient, so that the order of dates is kept (PS3.15 annex E)."""
    from medseg.ingest.pseudonyms import pseudonym

    try:
        day = datetime.datetime.strptime(date[:8], "%Y%m%d").replace(tzinfo=datetime.UTC).toordinal()
    except ValueError:
        day = 0
    return str(day + int(pseudonym(f"date shift {patient_hash}"), 16) % _SHIFT_DAYS)
