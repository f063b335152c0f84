"""What an image file's name tells: its format and its case id. Nothing heavy is imported here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from medseg.ingest.records import Kind

__all__ = ["IMAGE_SUFFIXES", "case_id_of", "image_kind"]

IMAGE_SUFFIXES: Final[dict[str, Kind]] = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"), "nifti"),
    ".mha": "metaimage",
    ".nrrd": "nrrd",
}
_SUFFIXES: Final = tuple(IMAGE_SUFFIXES)


def image_kind(path: str | os.PathLike[str]) -> Kind | None:
    """The format that a file's name ends in; ``None`` if it is none of those read here."""
    name = os.fspath(path).lower().rstrip("/")
    if not name.endswith(_SUFFIXES):
        return None
    return next((kind for suffix, kind in IMAGE_SUFFIXES.items() if name.endswith(suffix)), None)


def case_id_of(path: str | os.PathLike[str]) -> str:
    """The case id of an image file: its name without the extension; odd bytes are replaced."""
    name = Path(path).name
    suffixes = sorted(IMAGE_SUFFIXES, key=len, reverse=True)
    stem = next((name[: -len(s)] for s in suffixes if name.lower().endswith(s) and len(name) > len(s)), Path(name).stem)
    return stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
