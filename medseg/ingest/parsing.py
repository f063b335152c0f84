"""One file → what the index stores of it. This runs in the worker processes and holds one batch of files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from medseg.errors import ReasonCode, Refusal
from medseg.ingest import archives
from medseg.ingest.database import Found
from medseg.ingest.headers import Header, read_header
from medseg.ingest.leftovers import Leftover, describe, leftover_of, named_as_dicom
from medseg.ingest.names import case_id_of, image_kind, is_apple_double
from medseg.ingest.own import is_own_output, is_written_class
from medseg.ingest.pseudonyms import pseudonym
from medseg.ingest.records import SeriesRecord, unforeseen

__all__ = ["LEFTOVERS", "parse", "record_from_json", "record_of_leftovers", "record_to_json"]

LEFTOVERS = "x"
"""Key of all files that no reader knows but that may have been slices."""

_KEY_DIGITS = 32
_SHIFT_DAYS = 36500


def parse(paths: Sequence[str]) -> list[Found]:
    """Read the headers of some files. What goes in and out are plain strings, which pass to a process fast."""
    return [_found_or_refused(path) for path in paths]


def _found_or_refused(path: str) -> Found:
    try:
        return _found(path)
    except Exception as error:  # noqa: BLE001 - one file that no reader foresaw must not end the index of an archive
        return _of_refused(path, "unreadable", unforeseen(error))


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


def _of_member(path: str) -> Found:
    if image_kind(path) is None and not named_as_dicom(path) and not archives.looks_like_dicom(path):
        return "", ""
    with archives.on_disk([path]) as (copy,):
        return _of_path(copy, path)


def _of_path(path: str, shown: str) -> Found:
    """Key and payload of the file at ``path``, which the index knows as ``shown``.

    The content decides: some scanners name their DICOM files ``.img``, some archives ``.nii``.
    """
    header = read_header(path)
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
    if path != shown:
        header = header._replace(path=shown)
    if not header.series_uid_hash:
        key = _key("p", shown)
    else:
        key = f"d{header.study_uid_hash[:_KEY_DIGITS]}{header.series_uid_hash[:_KEY_DIGITS]}"
    return key, _without_dates(header).to_json()


def _of_leftover(left: Leftover | None) -> Found:
    return ("", "") if left is None else (LEFTOVERS, json.dumps(left))


def _key(kind: str, path: str) -> str:
    """Key of a file that is a series of its own: in ASCII, since a name on disk need not be valid text."""
    return kind + path.encode("unicode_escape").decode("ascii")


def _of_image(path: str, shown: str) -> Found:
    from medseg.ingest.images import inspect_image  # nibabel is not needed for a tree of DICOM files

    record = inspect_image(path)
    if path != shown:
        record = replace(record, case_id=case_id_of(shown), source=shown, files=(shown,))
    elif record.files[0] != path:
        return "", ""  # the header of the pair is there, and stands for both
    return _key("f", shown), record_to_json(record)


def _of_refused(path: str, code: ReasonCode, message: str) -> Found:
    record = SeriesRecord(case_id_of(path), path, image_kind(path) or "dicom", (path,), reason=code, message=message)
    return _key("f", path), record_to_json(record)


def record_of_leftovers(folder: str, found: Sequence[Leftover]) -> SeriesRecord:
    """The refused record of a folder whose files seem to be slices and cannot be read."""
    files = tuple(sorted(left.path for left in found))
    message = f"{describe(found)}: none of them can be read; copy them again, unpack them, or check their permissions"
    return SeriesRecord(case_id_of(files[0]), folder, "dicom", files, reason="unreadable", message=message)


def _of_own(path: str) -> Found:
    return _of_refused(path, "own-output", "medseg wrote this file as a result; it is no input")


def _without_dates(header: Header) -> Header:
    """Dates become day numbers with a secret shift per patient, so that their order is kept (PS3.15 annex E)."""
    date = header.facts.get("acquisition date")
    if date is not None:
        header.facts["acquisition date"] = _shifted_day(date, header.patient_hash)
    return header


@lru_cache(maxsize=4096)
def _shifted_day(date: str, patient_hash: str) -> str:
    try:
        day = datetime.datetime.strptime(date[:8], "%Y%m%d").replace(tzinfo=datetime.UTC).toordinal()
    except ValueError:
        day = 0
    return str(day + int(pseudonym(f"date shift {patient_hash}"), 16) % _SHIFT_DAYS)


def record_to_json(record: SeriesRecord) -> str:
    """A record as one line of JSON."""
    return json.dumps(asdict(record), separators=(",", ":"))


def record_from_json(values: dict[str, Any]) -> SeriesRecord:
    """The record that :func:`record_to_json` wrote, from its parsed JSON."""
    affine = values["affine"]
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    plain["affine"] = None if affine is None else tuple(tuple(row) for row in affine)
    return SeriesRecord(**plain)
