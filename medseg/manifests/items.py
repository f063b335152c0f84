"""What an entry of a datalist may hold, read and checked where the datalist is read; which files are images."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.ingest.image_files import is_image_file
from medseg.ingest.record import case_id_of, is_second_of_pair
from medseg.json_shape import ANYTHING, read_json
from medseg.labels.raters import is_rater, raters_of

SECTIONS = ("training", "validation", "test", "testing")
"""Names under which datalists keep their items."""

Item = dict[str, Any]
"""One case: ``image`` (one path, or one per channel), ``label``, ``patient_id``, ``fold``, ``sha256`` and more.

``label`` is a file (a label map, a DICOM SEG or RTSTRUCT), an object with a file for each structure, or a list of
raters: ``[{"rater": "A", "label": FILE or OBJECT}, ...]``, or of files alone.
"""


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
        paths = {key: item[key] for key in ("image", "label") if key in item}
        items.append({**item, **map_files(paths, lambda name: name.removeprefix("./"))})
        check_item(items[-1], datalist)
    return items


def map_files(entry: Any, change: Callable[[str], str]) -> Any:
    """An ``image`` or ``label`` with every path in it changed; names of structures and raters stay."""
    if isinstance(entry, str):
        return change(entry)
    if isinstance(entry, list):
        return [
            {**part, "label": map_files(part["label"], change)} if is_rater(part) else map_files(part, change)
            for part in entry
        ]
    return {name: map_files(part, change) for name, part in entry.items()} if isinstance(entry, Mapping) else entry


def files_of(entry: Any) -> list[str]:
    """Every path in an ``image`` or ``label``, in its order; a file that stands there twice is listed once."""
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    map_files(entry, note)
    return list(dict.fromkeys(found)) if not isinstance(entry, list) or any(map(is_rater, entry)) else found


def label_of(files: Mapping[tuple[str, str], str]) -> Any:
    """A label of files by rater and structure, either of them empty where there is none: what :data:`Item` may hold."""
    raters: dict[str, Any] = {}
    for (rater, structure), name in files.items():
        if structure:
            raters.setdefault(rater, {})[structure] = name
        else:
            raters[rater] = name
    return raters[""] if set(raters) == {""} else [{"rater": rater, "label": raters[rater]} for rater in sorted(raters)]


def entries_of(label: Any) -> dict[str, Any]:
    """A label by rater, each a file or an object of files; one that names no rater stands under ``""``."""
    return raters_of(label) or {"": label}


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


def _label(value: Any) -> bool:
    """A path, an object of paths by structure, or a list of them by rater, each rater once."""
    if isinstance(value, list):
        named = [part["rater"] for part in value if is_rater(part)]
        parts = [part["label"] if is_rater(part) else part for part in value]
        one_form = len(named) in (0, len(value)) and len(set(map(str, named))) == len(named)
        return bool(value) and one_form and all(map(_name, named)) and all(part and _single(part) for part in parts)
    return _single(value)


def _single(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(name and isinstance(file, str) and file for name, file in value.items())
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _sums(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and _paths(sums) for name, sums in value.items())


_HELD = {
    "image": (_paths, "one path or several"),
    "label": (
        _label,
        'a path, an object {"STRUCTURE": PATH, ...}, or a list [{"rater": NAME, "label": ...}, ...], each rater once',
    ),
    "case_id": (_name, "a name"),
    "patient_id": (_name, "a name"),
    "annotated": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) and name for name in value),
        "the names of the structures that were looked for",
    ),
    "fold": (lambda value: _name(value) and not isinstance(value, str), "a whole number"),
    "sha256": (_sums, 'sums by key, as {"image": "...", "label": "..."}'),
}


def patient_of(item: Mapping[str, Any]) -> str:
    """The patient an item belongs to; an item that names none is a patient of its own, known by its image."""
    patient = item.get("patient_id")
    return str(patient) if patient not in (None, "") else f"image:{item['image']}"


def case_of(item: Mapping[str, Any]) -> str:
    """Name of a case in messages: its ``case_id``, else its first image's name."""
    return str(item.get("case_id") or case_id_of(files_of(item["image"])[0]))


def sums_of(item: Mapping[str, Any], key: str) -> list[str]:
    """The SHA-256 sums that an item states of its files under a key, in their order; empty where it states none."""
    sums = (item.get("sha256") or {}).get(key, [])
    return [sums] if isinstance(sums, str) else sums


def case_names(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names that tell a datalist's cases apart: :func:`case_of`, or the image's path where another has the same."""
    named = [(case_of(item), item) for item in items]
    called = Counter(name for name, _ in named)
    return [name if called[name] == 1 else files_of(item["image"])[0] for name, item in named]


def split_channel(name: str) -> tuple[str, int | None]:
    """nnU-Net's ``CASE_0001`` as ``("CASE", 1)``; any other name has no channel."""
    match = re.match(r"^(?P<case>.+)_(?P<channel>\d{4})$", name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def files_below(folder: Path) -> list[Path]:
    """Files and folders below a folder, sorted, hidden ones left out.

    Links to folders are followed, as in datasets made of links: whoever is left out would be so without a word.
    """
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        above = {here.resolve(), *here.resolve().parents}
        folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() not in above]
        found += [here / name for name in (*folders, *files) if not name.startswith(".")]
    return sorted(found)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders, and the second files of pairs, are left out.

    So are DICOM files that some scanners name ``.img``: their series are found by the index.
    """
    return sorted(
        path for path in files_below(folder) if not is_second_of_pair(path) and path.is_file() and is_image_file(path)
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
