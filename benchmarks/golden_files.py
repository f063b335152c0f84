"""Whether two folders of results hold the same: file by file, what changes from run to run masked.

Label maps, weights and pictures are equal in every value; tables, JSON and DICOM objects in everything but times,
durations, versions, paths, and the UIDs and dates that a run makes up. Hidden files and databases are the run's own
notes and are passed over.
"""

from __future__ import annotations

import csv
import json
import math
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from PIL import Image
from safetensors import safe_open

_PASSED_OVER = re.compile(r"(^|/)\.[^/]*|\.sqlite(-\w+)?$|/events\.out\.tfevents")
_VOLATILE = re.compile(
    r"(.*_)?(seconds|date|time|started|finished)$|(spent|stages|stages_seconds|versions|medseg|torch|monai|python|checksums)$"
)
"""Keys of JSON and columns of CSV that say when, for how long and with which versions. Checksums of outputs stand for
files that are compared themselves."""

_MASKS = (
    (re.compile(r"\b\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?([+-]\d\d:?\d\d|Z| UTC)?)?"), "<time>"),
    (re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(ms|s|sec|seconds|min|minutes|h)\b"), "<duration>"),
    (re.compile(r"\b2\.25\.\d{20,}"), "<uid>"),
    (re.compile(r"\bSHA-256 [0-9a-f]{64}\b"), "SHA-256 <digest>"),
    (re.compile(r"\bmedseg((\.[A-Za-z_]\w*)+)\.(\w+)"), r"medseg..\3"),
)
"""In texts. Names of the package keep their last part only: modules may move."""

_MADE_DATES = {"DA", "DT"}
_STUDY_TIMES = {"StudyTime", "AcquisitionTime"}
_MADE_UIDS = re.compile(r"(2\.25|1\.2\.826\.0\.1\.3680043\.10\.511\.3)\.\d+")
"""Of random UIDs, and of those that highdicom makes."""
_SUM_OF_MEMBER = re.compile(r"^\.files\..*\.(sha256|bytes|size)$")
"""In the manifest of an archive, whose members are compared themselves."""
_VERSION_TAGS = {"SoftwareVersions", "ImplementationVersionName", "FileMetaInformationGroupLength"}
_PER_FILE = 6
"""Differences of one file that are told one by one."""


@dataclass(frozen=True)
class Difference:
    """One place where the trees' results are not the same."""

    file: str
    where: str
    old: str
    new: str

    def __str__(self) -> str:
        place = f"{self.file} [{self.where}]" if self.where else self.file
        return f"{place}\n    old: {self.old}\n    new: {self.new}"


@dataclass(frozen=True)
class Side:
    """One tree's results, and what stands in them for the tree itself: paths, the digests of its bundles."""

    folder: Path
    names: tuple[tuple[str, str], ...] = ()

    def masked(self, text: str) -> str:
        for name, mask in self.names:
            text = text.replace(name, mask)
        for pattern, mask in _MASKS:
            text = pattern.sub(mask, text)
        return text

    def files(self) -> set[str]:
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return {name for name in found if not _PASSED_OVER.search(name)}

    def with_bundles(self) -> Side:
        """Also mask the digest of a bundle, which is made over its configs and so over names of classes."""
        digests = set()
        for path in self.folder.rglob("run.json"):
            bundle = json.loads(path.read_text()).get("bundle")
            if isinstance(bundle, dict) and bundle.get("sha256"):
                digests.add(bundle["sha256"])
        return Side(self.folder, (*self.names, *((digest, "<bundle>") for digest in sorted(digests))))


@dataclass
class Comparison:
    """What came of two folders."""

    files: int = 0
    differences: list[Difference] = field(default_factory=list)


def compare_folders(old: Side, new: Side, prefix: str = "") -> Comparison:
    """Compare every file below two folders; names in the differences start with ``prefix``."""
    old, new = old.with_bundles(), new.with_bundles()
    before, after = old.files(), new.files()
    result = Comparison(len(before | after))
    for name in sorted(before | after):
        if name not in before or name not in after:
            there, missing = ("there", "missing") if name in before else ("missing", "there")
            result.differences.append(Difference(prefix + name, "", there, missing))
            continue
        found = list(_compare_files(old, new, name))
        result.differences += [Difference(prefix + name, *rest) for rest in found[:_PER_FILE]]
        if len(found) > _PER_FILE:
            result.differences.append(Difference(prefix + name, f"and {len(found) - _PER_FILE} more", "", ""))
    return result


Finding = tuple[str, str, str]
"""Where, and what stands there in the old and the new tree's file."""

Flat = dict[str, Any]
"""A file's content by place."""


def _compare_files(old: Side, new: Side, name: str) -> Iterator[Finding]:
    first, second = old.folder / name, new.folder / name
    if first.read_bytes() == second.read_bytes():
        return
    if name.endswith(".zip"):
        yield from _compare_archives(old, new, name)
        return
    read = _reader(first)
    try:
        contents = read(first, old), read(second, new)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises, the file is told as different
        yield "cannot be compared", f"{type(error).__name__}: {error}", ""
        return
    yield from _compare_flat(*contents)


def _compare_flat(old: Flat, new: Flat) -> Iterator[Finding]:
    for place in dict.fromkeys([*old, *new]):
        if place not in old or place not in new:
            there = _shown(old.get(place, new.get(place)))
            yield (place, there, "missing") if place in old else (place, "missing", there)
        elif not _same(old[place], new[place]):
            yield (place, *_both_shown(old[place], new[place]))


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes()
    if isinstance(old, float) and isinstance(new, float) and math.isnan(old):
        return math.isnan(new)
    return bool(type(old) is type(new) and old == new)


def _both_shown(old: Any, new: Any) -> tuple[str, str]:
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and old.shape == new.shape and old.size:
        unequal = int(np.count_nonzero(old != new))
        return f"{old.dtype} {old.shape}", f"{new.dtype} {new.shape}, {unequal} of {old.size} values differ"
    if isinstance(old, str) and isinstance(new, str):
        start = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        start = max(0, start - 30)
        return _shown(old[start : start + 160]), _shown(new[start : start + 160])
    return _shown(old), _shown(new)


def _shown(value: Any) -> str:
    text = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 170 else text[:170] + "…"


def _compare_archives(old: Side, new: Side, name: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as temporary:
        sides = []
        for number, side in enumerate((old, new)):
            folder = Path(temporary, str(number))
            with zipfile.ZipFile(side.folder / name) as archive:
                archive.extractall(folder)
            sides.append(Side(folder, side.names))
        for found in compare_folders(sides[0], sides[1]).differences:
            if not _SUM_OF_MEMBER.search(found.where):
                yield f"{found.file}: {found.where}", found.old, found.new


# One reader per kind of file.

Reader = Callable[[Path, Side], Flat]


def _reader(path: Path) -> Reader:
    for endings, reader in _READERS.items():
        if path.name.endswith(endings):
            return reader
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return _dicom
    return _text if b"\0" not in start else _raw


def _raw(path: Path, _: Side) -> Flat:
    return {"bytes": path.read_bytes()}


def _text(path: Path, side: Side) -> Flat:
    lines = side.masked(path.read_text(errors="replace")).splitlines()
    return {f"line {number}": line.rstrip() for number, line in enumerate(lines, 1)}


def _json(path: Path, side: Side) -> Flat:
    return dict(_flat(json.loads(path.read_text()), "", side))


def _flat(value: Any, place: str, side: Side) -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and sequences, also of JSON kept as text, by place; empty ones are leaves too."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            if _VOLATILE.fullmatch(str(key)):
                yield f"{place}.{key}", "<masked>"
            else:
                yield from _flat(part, f"{place}.{side.masked(str(key))}", side)
    elif isinstance(value, str) and place.endswith("json") and value.startswith(("{", "[")):
        yield from _flat(json.loads(value), place, side)
    elif isinstance(value, list | tuple) and value:
        for number, part in enumerate(value):
            yield from _flat(part, f"{place}[{number}]", side)
    elif isinstance(value, torch.Tensor):
        yield place, value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield f"{place} (type)", f"{value.dtype} {tuple(value.shape)}"
    else:
        yield place, side.masked(value) if isinstance(value, str) else value


def _csv(path: Path, side: Side) -> Flat:
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    flat: Flat = {"columns": ", ".join(head), "rows": len(rows)}
    for number, row in enumerate(rows, 1):
        for column, cell in zip(head, row, strict=False):
            masked = "<masked>" if _VOLATILE.fullmatch(column) else side.masked(cell)
            flat[f"row {number}, {column}"] = masked
    return flat


def _nifti(path: Path, _: Side) -> Flat:
    image = nib.load(path)
    return {"header": image.header.binaryblock, "affine": image.affine, "values": np.asarray(image.dataobj)}


def _weights(path: Path, side: Side) -> Flat:
    return dict(_flat(torch.load(path, map_location="cpu", weights_only=True), "", side))


def _safetensors(path: Path, side: Side) -> Flat:
    with safe_open(path, framework="pt") as file:
        content = {key: file.get_tensor(key) for key in sorted(file.keys())}
        return dict(_flat({"metadata": file.metadata(), **content}, "", side))


def _picture(path: Path, _: Side) -> Flat:
    with Image.open(path) as picture:
        return {"mode": picture.mode, "pixels": np.asarray(picture)}


def _dicom(path: Path, side: Side) -> Flat:
    flat: Flat = {}
    made: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")  # values of the source that are longer than allowed
        whole = pydicom.dcmread(path)
        for dataset in (whole.file_meta, whole):
            flat.update(_elements(dataset, "", side, made))
    return flat


def _elements(dataset: Any, place: str, side: Side, made: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Every element by place; UIDs that were made up get numbers in order of appearance, so references still count."""
    for element in dataset:
        name = f"{place}/{element.keyword or element.tag}"
        if element.VR == "SQ":
            yield f"{name} items", len(element.value)
            for number, item in enumerate(element.value):
                yield from _elements(item, f"{name}[{number}]", side, made)
        elif _is_made(element):
            yield name, "<masked>"
        elif element.VR == "UI":
            values = element.value if element.VM > 1 else [element.value]
            yield name, [_numbered(str(value), made) for value in values]
        elif isinstance(element.value, bytes):
            yield name, np.frombuffer(element.value, np.uint8)
        else:
            yield name, side.masked(str(element.value))


def _is_made(element: Any) -> bool:
    """Whether the element says when or with which version the object was made; the study's own dates are kept."""
    if element.keyword in _VERSION_TAGS:
        return True
    if element.VR == "TM":
        return element.keyword not in _STUDY_TIMES
    return element.VR in _MADE_DATES and element.keyword not in {"StudyDate", "AcquisitionDate", "PatientBirthDate"}


def _numbered(uid: str, made: dict[str, str]) -> str:
    return made.setdefault(uid, f"<uid {len(made)}>") if _MADE_UIDS.fullmatch(uid) else uid


_READERS: dict[str | tuple[str, ...], Reader] = {
    (".nii.gz", ".nii"): _nifti,
    ".json": _json,
    ".csv": _csv,
    ".pt": _weights,
    ".safetensors": _safetensors,
    (".png", ".jpg"): _picture,
    ".dcm": _dicom,
    (".html", ".md", ".txt", ".conf", ".yaml"): _text,
}


def allowed(difference: Difference, patterns: Sequence[str]) -> bool:
    """Whether the difference was announced: a pattern matches in ``file [where]``."""
    return any(re.search(pattern, f"{difference.file} [{difference.where}]") for pattern in patterns)
