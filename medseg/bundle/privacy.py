"""What a bundle would tell another site of patients and machines: file names, identifiers, folders.

A datalist inside a bundle keeps which cases belong to which patient and fold, and the SHA-256 sums by which a case that
the network has learnt from is known again; nothing of that needs the names that files have at home, which are often
names, dates of birth or accession numbers.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from medseg.bundle.config import SEPARATOR, SUFFIXES, parse_config, strings_in
from medseg.bundle.findings import Finding
from medseg.errors import BundleError
from medseg.labels import MAPPING_KEY
from medseg.labels.raters import is_rater

DATALIST = "configs/datalist.json"

_NEUTRAL_FOLDER = "data"
_SECTIONS = ("training", "validation", "test", "testing", "unlabelled")
_FILE_KEYS = ("image", "label")
_OF_THE_WHOLE = frozenset(
    {"name", "description", "task", "reference", "licence", "license", "licence_url", "release", "modality"}
    | {"channel_names", "tensorImageSize", "file_ending", "labels", MAPPING_KEY, "numTraining", "numTest", "split"}
)
"""What a datalist says of all its cases together."""
_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.mha|\.mhd|\.nrrd|\.nhdr|\.dcm)$", re.IGNORECASE)
_NEUTRAL = re.compile(r"((images|labels)/)?case-\d+(_\d{4})?(_s\d{3})?(\.\w+)*|patient-\d+")
_OF_LAYOUTS = frozenset(
    {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "images", "labels", "dicom"}
    | {"segmentations", "derivatives", "rawdata", *_SECTIONS}
)
"""Folders that the Decathlon, nnU-Net, TotalSegmentator, BIDS and a datalist's sections prescribe for every study."""
_TEXTS = (*SUFFIXES, ".md", ".txt", ".rst", ".csv", ".tsv", ".conf", ".cff", ".bib", ".svg")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4}))")
_SHORTEST = 5
"""Shorter words are found everywhere."""


def is_text(name: str) -> bool:
    """Whether a file of a bundle is read for names, by its own name."""
    return name.lower().endswith(_TEXTS)


def without_names(
    texts: Mapping[str, bytes], public: Iterable[str] = (), vocabulary: Collection[str] = ()
) -> dict[str, bytes]:
    """New content for the texts of a bundle that tell of patients and machines, by path in the bundle.

    The datalist becomes :func:`neutral_datalist`, and every config's ``dataset_dir`` a neutral folder. What stands in a
    text of ``public`` is no secret: the bundle's name, its structures. Nor is a whole word of ``vocabulary``, which
    stands in every bundle whatever its cases are called. Raises ``BundleError`` if another text names a file or a
    patient of the datalist, in a key or in a value, or a config a path from the root of a machine.
    """
    datalist = _parsed(DATALIST, texts.get(DATALIST, b"{}"))
    known = " ".join((*public, str(datalist.get("name")), str(datalist.get("task"))))
    names = _telling_names(datalist, known).difference(vocabulary)
    changed: dict[str, bytes] = {}
    for name, content in texts.items():
        if not _is_config(name):
            continue
        config = _parsed(name, content)
        elsewhere = {"dataset_dir": _NEUTRAL_FOLDER} if "dataset_dir" in config else {}
        neutral = neutral_datalist(config) if name == DATALIST else {**config, **elsewhere}
        if neutral != config:
            json_text = f"{json.dumps(neutral, indent=2, allow_nan=False)}\n"
            changed[name] = (json_text if name.endswith(".json") else yaml.safe_dump(neutral, sort_keys=False)).encode()
    for name, content in texts.items():
        text = _readable(changed.get(name, content))
        found = sorted(n for n in names if n in text and re.search(rf"(?<!\w){re.escape(n)}(?!\w)", text))
        if _is_config(name):
            strings = strings_in(_parsed(name, changed.get(name, content)))
            found += [value for _, value in strings if _is_absolute(value)]
        if found:
            more = " and more" if len(found) > 3 else ""
            raise BundleError(
                f"{name} names {', '.join(found[:3])}{more}, which may tell who the patients are or where the data lies"
                "; take it out of the file, or pack public data --with-names"
            )
    return changed


def _readable(content: bytes) -> str:
    """A text with the letters that JSON and YAML write as escapes, each in its one form (NFC)."""
    text = content.decode("utf-8", "replace")
    text = _ESCAPE.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), text)
    pairs = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON halves rare letters
    return unicodedata.normalize("NFC", pairs)


def neutral_datalist(content: Mapping[str, Any]) -> dict[str, Any]:
    """The datalist with numbers for names: items keep their fold, SHA-256 sums, and which of them share a patient.

    The same datalist gives the same numbers, and a neutral one stays as it is.
    """
    patients: dict[str, str] = {}
    made = {key: value for key, value in content.items() if key in _OF_THE_WHOLE}
    cases = itertools.count(1)
    for section in _SECTIONS:
        if isinstance(content.get(section), list):
            items = _items(content, section)
            made[section] = [_neutral_item(item, f"case-{next(cases):04d}", patients) for item in items]
    return made


def privacy_findings(configs: Mapping[str, Any]) -> Iterator[Finding]:
    """Warnings on what the parsed JSON files of a bundle tell of patients and machines."""
    for name, content in configs.items():
        if not name.startswith("configs/"):
            continue
        if name == DATALIST and isinstance(content, dict):
            yield from _named_cases(content)
        for path, value in strings_in(content):
            if _is_absolute(value):
                why = "it tells of a machine and leads nowhere on another; give a relative path"
                yield Finding("warn", name, SEPARATOR.join(path), f"the path {value}", why)


def _named_cases(datalist: Mapping[str, Any]) -> Iterator[Finding]:
    items = [item for section in _SECTIONS for item in _items(datalist, section)]
    told = [(item, [*_files(item.get("image")), *_files(item.get("label")), *_ids(item)]) for item in items]
    named = [item for item, texts in told if not all(map(_NEUTRAL.fullmatch, texts))]
    if named:
        what = f"file names or patient ids of {len(named)} cases"
        why = "they may tell who the patients are; `medseg bundle pack` leaves them out unless --with-names is given"
        yield Finding("warn", DATALIST, "", what, why)


def _is_config(name: str) -> bool:
    return name.startswith("configs/") and name.endswith(SUFFIXES)


def _parsed(name: str, content: bytes) -> dict[str, Any]:
    value = parse_config(content, name)
    return value if isinstance(value, dict) else {}


def _items(datalist: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    found = datalist.get(section)
    items = found if isinstance(found, list) else []
    return [item if isinstance(item, Mapping) else {"image": item} for item in items]


def _paths(item: Mapping[str, Any], key: str) -> Iterator[PurePosixPath]:
    for text in _files(item.get(key)):
        yield PurePosixPath(text.replace("\\", "/"))


def _files(value: Any) -> Iterator[str]:
    """The paths of an image or a label, which may be one for each structure or each rater."""
    if isinstance(value, Mapping):
        for part in [value["label"]] if is_rater(value) else value.values():
            yield from _files(part)
    elif isinstance(value, list):
        for part in value:
            yield from _files(part)
    elif value is not None:
        yield str(value)


def _ids(item: Mapping[str, Any]) -> Iterator[str]:
    yield from (str(item[key]) for key in ("patient_id", "case_id") if key in item)


def _neutral_item(item: Mapping[str, Any], case: str, patients: dict[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, folder in (("image", "images"), ("label", "labels")):
        if key in item:
            made[key] = _neutral_path(item[key], f"{folder}/{case}")
    if "case_id" in item:
        made["case_id"] = case
    if "patient_id" in item:
        made["patient_id"] = patients.setdefault(str(item["patient_id"]), f"patient-{len(patients) + 1:04d}")
    return made | {key: item[key] for key in ("fold", "sha256") if key in item}


def _neutral_path(value: Any, stem: str) -> Any:
    if isinstance(value, list):
        parts = [(part, f"{stem}_{number:04d}") for number, part in enumerate(value)]
        return [
            {"rater": name.rsplit("_", 1)[1], "label": _neutral_path(part["label"], name)}
            if is_rater(part)
            else _neutral_path(part, name)
            for part, name in parts
        ]
    if isinstance(value, Mapping):
        return {name: _neutral_path(part, f"{stem}_s{number:03d}") for number, (name, part) in enumerate(value.items())}
    suffix = _SUFFIX.search(str(value))
    return stem + (suffix.group().lower() if suffix else "")


def _telling_names(datalist: Mapping[str, Any], public: str) -> set[str]:
    """File names with and without suffix, folders that differ between cases, and identifiers."""
    items = [item for section in _SECTIONS for item in _items(datalist, section)]
    names = {text for item in items for text in _ids(item)}
    for path in (path for item in items for key in _FILE_KEYS for path in _paths(item, key)):
        names |= {path.name, _SUFFIX.sub("", path.name)}
    names |= {folder for key in _FILE_KEYS for folder in _differing_folders(items, key)} - _OF_LAYOUTS
    known = public.casefold()
    names = {unicodedata.normalize("NFC", name) for name in names}
    return {n for n in names if len(n) >= _SHORTEST and not _NEUTRAL.fullmatch(n) and n.casefold() not in known}


def _differing_folders(items: Iterable[Mapping[str, Any]], key: str) -> set[str]:
    """Folders in which the images (or the labels) of some cases lie and of others not; of one patient alone all."""
    having = [item for item in items if item.get(key)]
    folders: list[set[str]] = [{part for path in _paths(item, key) for part in path.parts[:-1]} for item in having]
    patients = {str(item.get("patient_id", number)) for number, item in enumerate(having)}
    every = set[str]().union(*folders)
    return every - folders[0].intersection(*folders) if len(patients) > 1 else every


def _is_absolute(text: str) -> bool:
    """Whether a text is a path from the root of a machine or from somebody's home, not an expression or a slash."""
    if text.startswith("$") or "\n" in text or not any(char.isalnum() for char in text):
        return False
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~")
