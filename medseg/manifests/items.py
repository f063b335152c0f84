"""What an entry of a datalist may hold, and how cases are named.

What an item of a datalist may hold, checked where the datalist is read, so that nobody meets it later.

File names of images: which they are, channel numbers, names relative to a folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.ingest.dicom_header import is_dicom
from medseg.ingest.record import image_kind, is_second_of_pair


def check_item(item: Mapping[str, Any], datalist: Path) -> None:
    """Refuse an item whose known keys hold another kind of value than they may.

    Raises
    ------
    UsageError
        With the key, what was found and what was expected.
    """
    for key, (holds, expected) in _KINDS.items():
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


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sums(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and _paths(sums) for name, sums in value.items())


_KINDS = {
    "image": (_paths, "one path or several"),
    "label": (_paths, "one path or several"),
    "case_id": (_name, "a name"),
    "patient_id": (_name, "a name"),
    "fold": (_whole, "a whole number"),
    "sha256": (_sums, 'sums by key, as {"image": "...", "label": "..."}'),
}


_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def split_channel(name: str) -> tuple[str, int | None]:
    """nnU-Net's ``CASE_0001`` as ``("CASE", 1)``; any other name has no channel."""
    match = _CHANNEL.match(name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders, and the second files of pairs, are left out.

    So are DICOM files that some scanners name ``.img``: their series are found by the index.
    """
    found = [
        path
        for path in folder.rglob("*")
        if image_kind(path) is not None
        and not is_second_of_pair(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(path for path in found if path.is_file() and not is_dicom(path))


def relative_name(path: Path, start: Path) -> str:
    """A path relative to ``start`` with forward slashes; links are not followed, so annexed files keep their names."""
    return Path(os.path.relpath(path.absolute(), start.absolute())).as_posix()


def common_start(*folders: Path) -> Path:
    """The deepest folder that holds all of ``folders``; links are not followed."""
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100


def one_or_list(files: list[str]) -> str | list[str]:
    """A single channel is a string in a datalist, several are a list."""
    return files[0] if len(files) == 1 else files
