"""What an entry of a datalist may hold, read and checked where the datalist is read; which files are images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.ingest.image_files import is_image_file
from medseg.ingest.record import is_second_of_pair
from medseg.json_shape import ANYTHING, read_json

SECTIONS = ("training", "validation", "test", "testing")
"""Names under which datalists keep their items."""

Item = dict[str, Any]
"""One case: ``image`` (one path, or one per channel), ``label``, ``patient_id``, ``fold``, ``sha256`` and more."""


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a :class:`UsageError` that says what is wrong with it."""
    content = read_json(path, ANYTHING, "give an existing datalist")
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a JSON {type(content).__name__}; expected an object with a list of items")
    return content


def read_items(entries: Any, section: str, datalist: Path) -> list[Item]:
    """The items of a section, checked; MSD lists its test images as bare strings and writes paths with a ``./``.

    A UsageError if it is no list, or an item is odd.
    """
    if not isinstance(entries, list):
        raise UsageError(f"{datalist}: {section!r} is a {type(entries).__name__}; expected a list of items")
    items = []
    for entry in entries:
        item = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(item, dict) or "image" not in item:
            raise UsageError(f"{datalist}: found an item without an image: {json.dumps(item)[:120]}")
        items.append({key: _without_dot(value) if key in ("image", "label") else value for key, value in item.items()})
        check_item(items[-1], datalist)
    return items


def _without_dot(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_dot(part) for part in value]
    return value.removeprefix("./") if isinstance(value, str) else value


def check_item(item: Mapping[str, Any], datalist: Path) -> None:
    """Refuse an item whose known keys hold another kind of value than they may (a UsageError)."""
    for key, (holds, expected) in _HELD.items():
        value = item.get(key)
        if value is not None and not holds(value):
            shown = json.dumps(value)[:120]
            raise UsageError(f"{datalist}: {key!r} of an item is {shown}, expected {expected}; correct it")
    if not item.get("image"):
        raise UsageError(f"{datalist}: found an item without an image; give one path, or one per channel")


def _paths(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, str) and part for part in value)
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _sums(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and _paths(sums) for name, sums in value.items())


_HELD = {
    "image": (_paths, "one path or several"),
    "label": (_paths, "one path or several"),
    "case_id": (_name, "a name"),
    "patient_id": (_name, "a name"),
    "fold": (lambda value: _name(value) and not isinstance(value, str), "a whole number"),
    "sha256": (_sums, 'sums by key, as {"image": "...", "label": "..."}'),
}


def patient_of(item: Mapping[str, Any]) -> str:
    """The patient an item belongs to; an item that names none is a patient of its own, known by its image."""
    patient = item.get("patient_id")
    return str(patient) if patient not in (None, "") else f"image:{item['image']}"


def split_channel(name: str) -> tuple[str, int | None]:
    """nnU-Net's ``CASE_0001`` as ``("CASE", 1)``; any other name has no channel."""
    match = re.match(r"^(?P<case>.+)_(?P<channel>\d{4})$", name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders, and the second files of pairs, are left out.

    So are DICOM files that some scanners name ``.img``: their series are found by the index.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if not is_second_of_pair(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and is_image_file(path)
    )


def relative_name(path: Path, start: Path) -> str:
    """A path relative to ``start`` with forward slashes; links are not followed, so annexed files keep their names."""
    return Path(os.path.relpath(path.absolute(), start.absolute())).as_posix()


def common_start(*folders: Path) -> Path:
    """The deepest folder that holds all of ``folders``; links are not followed."""
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100


def one_or_list(files: list[str]) -> str | list[str]:
    """A single channel is a string in a datalist, several are a list."""
    return files[0] if len(files) == 1 else files
