"""Files that are no source: what medseg wrote itself, and what lies beside slices and cannot be read.

A label map that is taken for an image is labelled again, without a word. So every result carries a mark: the field
``descrip`` of a NIfTI header; Manufacturer (0008,0070) together with the class of the object in DICOM. Results that
older versions left without a mark are known by the ``run.json`` in their folder, which lists them.

Whoever reads a volume must know of files beside its slices that could not be read, since slices may be missing. What
is no slice by its name (notes, tables, pictures, hidden files) needs no word, unless slices here are named so.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from medseg.errors import Refusal
from medseg.files import shown
from medseg.ingest.dicom_elements import open_file, read_elements
from medseg.ingest.record import SeriesRecord, case_id_of, image_kind
from medseg.ingest.stored_values import read_begin

OwnKind = Literal["label-map", "doubt-map", "probability-map"]

MANUFACTURER: Final = "medseg"
"""What medseg's DICOM objects state as their manufacturer."""

_log = logging.getLogger(__name__)
_MARKS: Final = tuple(f"medseg {kind}".encode() for kind in get_args(OwnKind))
_DESCRIP: Final = slice(148, 228)  # of a NIfTI-1 header; NIfTI-2 is not written
_MANUFACTURER_TAG: Final = 0x00080070
_CLASS_TAGS: Final = (0x00080016, 0x00020002)  # of the object, and in the file meta information
_WRITTEN_CLASSES: Final = ("7", "66.4", "66.7", "88.11", "88.22", "88.33", "88.34", "481.3")
"""Secondary captures, segmentations and label maps, reports, RT Structure Sets (PS3.4 annex B.5)."""
_LARGEST_RUN_BYTES: Final = 256 * 1024 * 1024


def mark(kind: OwnKind) -> str:
    """What a NIfTI result of this kind carries as its description."""
    return f"medseg {kind}"


def is_own_output(path: str | os.PathLike[str]) -> bool:
    """Whether medseg wrote this file as a result, so that it is no input: its header says so, or the run beside it."""
    kind = image_kind(path)
    try:
        own = kind == "nifti" and read_begin(path, _DESCRIP.stop)[_DESCRIP].rstrip(b"\0 ") in _MARKS
        if not own and (kind is None or os.fspath(path).lower().endswith((".img", ".hdr"))):
            own = _is_own_object(path)
    except (OSError, Refusal):
        own = False
    return own or os.path.basename(path) in _listed_beside(path)  # noqa: PTH119


def without_own(paths: Sequence[Path]) -> list[Path]:
    """The files that may be inputs; the log tells of those that medseg wrote."""
    own = {path for path in paths if is_own_output(path)}
    warn_of_own([str(path) for path in paths if path in own])
    return [path for path in paths if path not in own]


def warn_of_own(sources: Sequence[str]) -> None:
    """Tell of files that are left out because medseg wrote them."""
    if sources:
        what = f"{len(sources)} file(s) that medseg wrote as results are left out"
        _log.warning("%s, such as %s", what, shown(sources[0]))


def _is_own_object(path: str | os.PathLike[str]) -> bool:
    found = read_elements(path, frozenset((_MANUFACTURER_TAG, *_CLASS_TAGS)))
    if found is None or found.values.get(_MANUFACTURER_TAG, b"").strip(b"\0 ") != MANUFACTURER.encode():
        return False
    classes = (found.values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace") for tag in _CLASS_TAGS)
    return any(map(is_written_class, classes))


def is_written_class(sop_class_uid: str) -> bool:
    """Whether medseg writes results of this SOP class; images that it made itself, as phantoms, are none."""
    from medseg.ingest.dicom_tags import is_one_of

    return is_one_of(sop_class_uid, _WRITTEN_CLASSES)


def _listed_beside(path: str | os.PathLike[str]) -> frozenset[str]:
    run = os.path.join(os.path.dirname(path), "run.json")  # noqa: PTH118, PTH120 - bytes of odd names survive
    try:
        found = os.stat(run)  # noqa: PTH116
    except OSError:
        return frozenset()
    return _listed(run, found.st_mtime_ns) if found.st_size <= _LARGEST_RUN_BYTES else frozenset()


@lru_cache(maxsize=64)
def _listed(run: str, _mtime_ns: int) -> frozenset[str]:
    """Names of the outputs that a ``run.json`` of medseg lists."""
    try:
        content = json.loads(Path(run).read_bytes())
        if not isinstance(content, dict) or "medseg" not in content:
            return frozenset()
        return frozenset(str(name) for case in content.get("cases", ()) for name in case.get("outputs", ()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return frozenset()


LOCKED: Final = "not readable"
_GZIP: Final = b"\x1f\x8b"
_SLICES: Final = (".dcm", ".dicom", ".dic", ".ima", ".dcm30")
_ENDINGS: Final = """
    .txt .md .rst .rtf .pdf .doc .docx .odt .xls .xlsx .ods .ppt .pptx .csv .tsv .json .jsonl .xml .xsl .log
    .yaml .yml .toml .ini .cfg .inf .lnk .url .lock .tmp .bak .swp .md5 .sha256 .sum .bvec .bval .db .sqlite
    .exe .dll .so .bat .cmd .sh .py .pyc .ipynb .m .r .jar .class .html .htm .css .js
    .svg .png .jpg .jpeg .gif .bmp .tif .tiff .ico .webp .mp4 .avi .mov .wav .stl .obj .ply .vtk .vtp
    .pt .pth .onnx .npy .npz .mat .h5 .pkl"""
_SUFFIXES: Final = frozenset(_ENDINGS.split())
_OTHERS: Final = """
    thumbs.db ehthumbs.db desktop.ini dicomdir autorun.inf lockfile version index
    readme license licence changes copying makefile md5sums sha1sums sha256sums"""
_NAMES: Final = frozenset(_OTHERS.split())


class Leftover(NamedTuple):
    """A file that is neither DICOM nor another image, and why it could not be read."""

    path: str
    why: str


def leftover_of(path: str, shown: str | None = None) -> Leftover | None:
    """What to say of a file that no reader knows, or of ``shown`` of which it is a copy; ``None`` if it is no slice."""
    known_as = shown or path
    try:
        with open_file(path) as handle:
            return leftover_from(known_as, handle.read(4) or b"")
    except FileNotFoundError:
        return _named(known_as, "links to nothing")
    except OSError:
        return _named(known_as, LOCKED)


def leftover_from(path: str, start: bytes) -> Leftover | None:
    """What to say of a file that begins with these bytes; ``None`` if it is no slice by its name."""
    return _named(path, "empty" if not start else "compressed by gzip" if start.startswith(_GZIP) else "no DICOM files")


def _named(path: str, why: str) -> Leftover | None:
    name = _name(path).lower()
    return None if name.startswith(".") or name in _NAMES else Leftover(path, why)


def note_on(leftovers: Iterable[Leftover], files: Sequence[str]) -> tuple[str, ...]:
    """One note if files that could not be read lie beside those of a volume, and may be slices; else empty."""
    folders, suffixes = {os.path.dirname(file) for file in files}, {_suffix(file) for file in files}  # noqa: PTH120
    near = [left for left in leftovers if os.path.dirname(left.path) in folders]  # noqa: PTH120
    beside = [left for left in near if _suffix(left.path) not in _SUFFIXES - suffixes]
    return (f"{describe(beside)} beside the slices, which may lack some: look at them",) if beside else ()


def record_of_leftovers(folder: str, leftovers: Iterable[Leftover]) -> SeriesRecord | None:
    """The refused record of a folder whose files cannot be read and seem to be slices; ``None`` if they do not."""
    seeming = [left for left in leftovers if named_as_dicom(left.path) or left.why == LOCKED]
    if not seeming:
        return None
    files = tuple(sorted(left.path for left in seeming))
    message = f"{describe(seeming)}: none of them can be read; copy them again, unpack them, or check their permissions"
    return SeriesRecord(case_id_of(files[0]), folder, "dicom", files, reason="unreadable", message=message)


def with_leftovers(records: list[SeriesRecord], leftovers: Sequence[Leftover]) -> list[SeriesRecord]:
    """Records with a note where files beside their slices could not be read, and one for each folder of such files."""
    by_folder: dict[str, list[Leftover]] = defaultdict(list)
    for left in leftovers:
        by_folder[os.path.dirname(left.path)].append(left)  # noqa: PTH120
    told: dict[frozenset[tuple[str, str]], tuple[str, ...]] = {}  # once for all series of the same folders and suffixes

    def noted(record: SeriesRecord) -> SeriesRecord:
        if not record.usable or record.kind != "dicom":
            return record
        where = frozenset((os.path.dirname(file), _suffix(file)) for file in record.files)  # noqa: PTH120
        if where not in told:
            beside = [left for folder in {folder for folder, _ in where} for left in by_folder.get(folder, ())]
            told[where] = note_on(beside, record.files)
        return replace(record, notes=(*record.notes, *told[where])) if told[where] else record

    known = {os.path.dirname(file) for record in records if record.kind == "dicom" for file in record.files}  # noqa: PTH120
    alone = (record_of_leftovers(folder, beside) for folder, beside in by_folder.items() if folder not in known)
    return [*map(noted, records), *(record for record in alone if record is not None)]


def describe(leftovers: Sequence[Leftover]) -> str:
    """How many files were left out, and why."""
    counts = Counter(left.why for left in leftovers)
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f"{len(leftovers)} file{'s' if len(leftovers) > 1 else ''} left out ({why})"


def named_as_dicom(path: str) -> bool:
    """Whether a name ends as those of DICOM files do, compressed ones included."""
    return _name(path).lower().removesuffix(".gz").endswith(_SLICES)


def _name(path: str) -> str:
    return os.path.basename(path)  # noqa: PTH119 - bytes of odd names survive


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122
