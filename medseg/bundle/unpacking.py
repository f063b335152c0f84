"""Take one folder out of a zip that a stranger made: names, kinds and sizes are judged before a byte is written."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from medseg.errors import UntrustedBundle
from medseg.files import sha256_file

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""How the folder of a bundle may be called."""
LARGEST_DIRECTORY = 4 << 20
"""Bytes of the list of a zip's members."""
Sum = tuple[str, int]
"""SHA-256 and number of bytes of a file."""

_CHUNK = 1 << 20
MOST_FILES = 10_000
_LONGEST_NAME = 240
_DEEPEST_FOLDER = 16
_SMALL_BYTES = 64 << 20
_LARGEST_RATIO = 50
"""What a packed bundle needs (weights hardly compress, texts to a tenth), many times over: an archive states its sizes
itself, and unpacking, reading and judging it must not cost more than it is worth. Below ``_SMALL_BYTES`` any ratio is
harmless."""


def most_bytes(archive_bytes: int) -> int:
    """To how many bytes an archive of that size may unpack."""
    return max(_SMALL_BYTES, _LARGEST_RATIO * archive_bytes)


def safe_members(source: zipfile.ZipFile, limit_bytes: int) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """Root folder, and the files by their path below it; refuses whatever could land elsewhere or never end."""
    infos = [info for info in source.infolist() if not info.is_dir()]
    total = sum(info.file_size for info in infos)
    if len(infos) > MOST_FILES or total > limit_bytes:
        found = f"the archive unpacks to {total} bytes in {len(infos)} files"
        raise UntrustedBundle(f"{found}, expected at most {limit_bytes} bytes in {MOST_FILES} files; not unpacked")
    members: dict[str, zipfile.ZipInfo] = {}
    roots, known = set[str](), set[str]()
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if problem := _member_problem(info, parts):
            raise UntrustedBundle(f"the archive holds {info.filename[:_LONGEST_NAME]!r}, {problem}; not unpacked")
        roots.add(parts[0])
        name = "/".join(parts[1:])
        if name.casefold() in known:
            raise UntrustedBundle(f"the archive holds {name!r} twice; not unpacked")
        known.add(name.casefold())
        members[name] = info
    if len(roots) != 1:
        why = f"the archive holds {len(roots)} folders, expected one named like the bundle"
        raise UntrustedBundle(f"{why}; not unpacked")
    return roots.pop(), members


def _member_problem(info: zipfile.ZipInfo, parts: tuple[str, ...]) -> str | None:
    name = info.filename
    mode = info.external_attr >> 16
    checks = {
        "outside the bundle's folder": name.startswith("/") or "//" in name or ".." in parts or len(parts) < 2,
        "not a plain name": not name.isascii() or not name.isprintable() or any(char in name for char in '\\:*?"<>|'),
        "not a plain file": stat.S_IFMT(mode) not in {0, stat.S_IFREG},
        "not named like a bundle": not FOLDER_NAME.fullmatch(parts[0]) if parts else True,
        "packed by an unusual method": info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED},
        "encrypted": bool(info.flag_bits & 0x1),
        "a name that is too long": len(name) > _LONGEST_NAME or len(parts) > _DEEPEST_FOLDER,
        "a bomb": info.file_size > 1000 * max(info.compress_size, 1024),
    }
    return next((problem for problem, found in checks.items() if found), None)


def extract(
    source: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], sums: Mapping[str, Sum], folder: Path
) -> None:
    """Write the members below ``folder``; those with ``sums`` must have them."""
    for name, info in members.items():
        destination = folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        with source.open(info) as member, destination.open("xb") as handle:
            shutil.copyfileobj(member, handle, _CHUNK)
        if name in sums and sums[name] != (sha256_file(destination), destination.stat().st_size):
            raise UntrustedBundle(f"{name} is not the file that was packed: its SHA-256 differs; ask for it again")
