"""What an image file's name tells: its format, its case id, its other half. Nothing heavy is imported here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from medseg.ingest.records import Kind

__all__ = [
    "IMAGE_SUFFIXES",
    "case_id_of",
    "data_path",
    "first_of_pair",
    "header_path",
    "image_kind",
    "is_apple_double",
    "is_second_of_pair",
    "pair_of",
]

IMAGE_SUFFIXES: Final[dict[str, Kind]] = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"), "nifti"),
    **dict.fromkeys((".mha", ".mhd"), "metaimage"),
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
}
_SUFFIXES: Final = tuple(IMAGE_SUFFIXES)
_HALVES: Final = {".hdr": ".img", ".hdr.gz": ".img.gz", ".img": ".hdr", ".img.gz": ".hdr.gz"}
_APPLE_DOUBLE: Final = (b"\0\x05\x16\x07", b"\0\x05\x16\0")


def is_apple_double(path: str | os.PathLike[str], content: str | os.PathLike[str] | None = None) -> bool:
    """Whether a file is what macOS leaves beside another one on disks that are not its own, by name and content.

    ``._t1.nii.gz`` holds attributes of ``t1.nii.gz`` and no image (RFC 1740).

    Parameters
    ----------
    path
        The path by which the file is known.
    content
        Where its bytes are, if elsewhere (a member of an archive).

    Raises
    ------
    OSError
        The file cannot be read.
    """
    where = Path(path if content is None else content)
    if not Path(path).name.startswith("._") or not where.is_file():
        return False
    with where.open("rb") as handle:
        head = handle.read(len(_APPLE_DOUBLE[0]))
    return len(head) < len(_APPLE_DOUBLE[0]) or head in _APPLE_DOUBLE


def pair_of(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """The two halves of a NIfTI or Analyze pair, header first; ``None`` if the name is not that of a half.

    The other half is looked for beside it, whatever the case of its extension and whether it is compressed or not;
    if it is not there, its expected name is returned.
    """
    given = os.fspath(path)
    suffix = next((end for end in sorted(_HALVES, key=len, reverse=True) if given.lower().endswith(end)), None)
    if suffix is None:
        return None
    other = _other_half(given[: -len(suffix)], given[-len(suffix) :])
    return (given, other) if suffix.startswith(".hdr") else (other, given)


def _other_half(stem: str, suffix: str) -> str:
    wanted = _HALVES[suffix.lower()]
    plain = wanted.removesuffix(".gz")
    endings = dict.fromkeys((wanted, plain, f"{plain}.gz"))
    names = [stem + written for ending in endings for written in _spellings(ending, suffix)]
    return next((name for name in names if os.path.exists(name)), names[0])  # noqa: PTH110


def _spellings(ending: str, like: str) -> list[str]:
    """An extension in the letters of the other half's first, then in other ones: ``.IMG``, ``.img``, ``.Img``."""
    same = ending.upper() if like.isupper() else ending
    return list(dict.fromkeys((same, ending, ending.upper(), ending.title())))


def header_path(path: str | os.PathLike[str]) -> str:
    """The file that holds the header of an image: the first of a pair, else the file itself."""
    pair = pair_of(path)
    return os.fspath(path) if pair is None else pair[0]


def data_path(path: str | os.PathLike[str]) -> str:
    """The file that holds the values of an image: the second of a pair, else the file itself."""
    pair = pair_of(path)
    return os.fspath(path) if pair is None else pair[1]


def is_second_of_pair(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds the values of a pair whose header is there, so that it is no image of its own."""
    header = header_path(path)
    return header != os.fspath(path) and os.path.exists(header)  # noqa: PTH110


def first_of_pair(path: str | os.PathLike[str]) -> str:
    """The header where a file holds the values of a pair, else the file itself."""
    return header_path(path) if is_second_of_pair(path) else os.fspath(path)


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
