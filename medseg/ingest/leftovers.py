"""Files beside the slices that could not be read: whoever reads the volume must know that slices may be missing.

What is no slice by its name (notes, tables, pictures, hidden files) needs no word, unless slices here are named so.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from medseg.ingest.elements import open_file

__all__ = ["Leftover", "describe", "leftover_of", "named_as_dicom", "note_on", "orphans"]

_EMPTY: Final = "empty"
_NOWHERE: Final = "links to nothing"
_LOCKED: Final = "not readable"
_PACKED: Final = "compressed by gzip"
_OTHER: Final = "no DICOM files"

_HEAD_BYTES: Final = 4
_GZIP: Final = b"\x1f\x8b"
_SLICES: Final = (".dcm", ".dicom", ".dic", ".ima", ".dcm30")
_TEXTS: Final = (
    ".txt .md .rst .rtf .pdf .doc .docx .odt .xls .xlsx .ods .ppt .pptx .csv .tsv .json .jsonl .xml .xsl .log"
)
_SETTINGS: Final = (
    ".yaml .yml .toml .ini .cfg .inf .lnk .url .lock .tmp .bak .swp .md5 .sha256 .sum .bvec .bval .db .sqlite"
)
_PROGRAMS: Final = ".exe .dll .so .bat .cmd .sh .py .pyc .ipynb .m .r .jar .class .html .htm .css .js"
_PICTURES: Final = ".svg .png .jpg .jpeg .gif .bmp .tif .tiff .ico .webp .mp4 .avi .mov .wav .stl .obj .ply .vtk .vtp"
_ARRAYS: Final = ".pt .pth .onnx .npy .npz .mat .h5 .pkl"
_SUFFIXES: Final = frozenset(" ".join((_TEXTS, _SETTINGS, _PROGRAMS, _PICTURES, _ARRAYS)).split())
_SYSTEM: Final = "thumbs.db ehthumbs.db desktop.ini dicomdir autorun.inf lockfile version index"
_README: Final = "readme license licence changes copying makefile md5sums sha1sums sha256sums"
_NAMES: Final = frozenset(f"{_SYSTEM} {_README}".split())


class Leftover(NamedTuple):
    """A file that is neither DICOM nor another image, and why it could not be read."""

    path: str
    why: str


def leftover_of(path: str, shown: str | None = None) -> Leftover | None:
    """What to say of a file that no reader knows; ``None`` if it is no slice by its name.

    Parameters
    ----------
    path
        The file.
    shown
        The path by which it is known, where ``path`` is a copy.
    """
    known_as = shown or path
    name = _name(known_as).lower()
    if name.startswith(".") or name in _NAMES:
        return None
    try:
        head = _head(path)
    except FileNotFoundError:
        return Leftover(known_as, _NOWHERE)
    except OSError:
        return Leftover(known_as, _LOCKED)
    return Leftover(known_as, _EMPTY if not head else _PACKED if head.startswith(_GZIP) else _OTHER)


def note_on(leftovers: Iterable[Leftover], files: Iterable[str]) -> tuple[str, ...]:
    """One note if files lie beside the slices that may be slices, too; empty if there are none.

    Parameters
    ----------
    leftovers
        Files that could not be read.
    files
        The files of the volume: only what lies in their folders counts.
    """
    names = list(files)
    folders, suffixes = {os.path.dirname(file) for file in names}, {_suffix(file) for file in names}  # noqa: PTH120
    beside = [
        left
        for left in leftovers
        if os.path.dirname(left.path) in folders  # noqa: PTH120
        and (_suffix(left.path) not in _SUFFIXES or _suffix(left.path) in suffixes)
    ]
    return (f"{describe(beside)} beside the slices, which may lack some: look at them",) if beside else ()


def orphans(leftovers: Iterable[Leftover], folders: Iterable[str]) -> dict[str, list[Leftover]]:
    """By folder, what is DICOM by its name or cannot be opened, and lies beside no slice that could be read."""
    known = set(folders)
    found: dict[str, list[Leftover]] = defaultdict(list)
    for left in leftovers:
        folder = os.path.dirname(left.path)  # noqa: PTH120
        if folder not in known and (named_as_dicom(left.path) or left.why == _LOCKED):
            found[folder].append(left)
    return dict(found)


def describe(leftovers: Sequence[Leftover]) -> str:
    """How many files were left out, and why."""
    counts = Counter(left.why for left in leftovers)
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f"{len(leftovers)} file{'s' if len(leftovers) > 1 else ''} left out ({why})"


def named_as_dicom(path: str) -> bool:
    """Whether a name ends as those of DICOM files do, compressed ones included."""
    return _name(path).lower().removesuffix(".gz").endswith(_SLICES)


def _head(path: str) -> bytes:
    with open_file(path) as handle:
        return handle.read(_HEAD_BYTES) or b""


def _name(path: str) -> str:
    return os.path.basename(path)  # noqa: PTH119 - bytes of odd names survive


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122
