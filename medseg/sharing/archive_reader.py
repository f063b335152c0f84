"""What strangers' archives may hold, and what one says of itself, before anything of it is unpacked."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medseg.bundle import Bundle
from medseg.bundle.config import parse_config
from medseg.bundle.find import LICENCE_FILE, METADATA, licence_named
from medseg.bundle.policy import MANIFEST, SIGNATURE
from medseg.bundle.signing import read_public_key, verify_signature
from medseg.errors import UntrustedBundle, UsageError
from medseg.files import open_zip, read_member

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MOST_FILES = 10_000
LARGEST_DIRECTORY = 4 << 20
LARGEST_MANIFEST = 4 << 20  # 10,000 files of 400 bytes each
_LARGEST_SIGNATURE = 16 << 10
_LONGEST_NAME = 240
_DEEPEST_FOLDER = 16
_SMALL_BYTES = 64 << 20
_LARGEST_RATIO = 50
"""What a packed bundle needs (weights hardly compress, texts to a tenth), many times over: an archive states its sizes
itself, and unpacking, reading and judging it must not cost more than it is worth. Below ``_SMALL_BYTES`` any ratio is
harmless."""

Sum = tuple[str, int]
"""SHA-256 and number of bytes of a file."""


@dataclass(frozen=True)
class Peeked:
    """What an archive says of itself: its bundle's metadata, licence, files, unpacked bytes, and who signed the list.

    ``is_packed``: whether medseg packed it, so that its completeness can be checked. Nothing is checked byte by byte.
    """

    bundle: Bundle
    licence: str
    files: tuple[str, ...]
    size_bytes: int
    is_packed: bool
    signed_by: str | None


def peek(archive: str | Path, *, key: str | Path | None = None, limit_bytes: int = 8 << 30) -> Peeked:
    """Read what an archive of one bundle says, without unpacking it; raises as :func:`~medseg.sharing.unpack` does."""
    path = Path(archive)
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give an archive of a bundle")
    try:
        with open_zip(path, LARGEST_DIRECTORY) as source:
            name, members = safe_members(source, min(limit_bytes, most_bytes(path.stat().st_size)))
            manifest = member_bytes(source, members, MANIFEST, LARGEST_MANIFEST)
            signed_by = check_signature(source, members, manifest, key)
            if manifest is not None:
                read_manifest(manifest, members, name)
            metadata = member_bytes(source, members, METADATA, LARGEST_MANIFEST)
            licence = member_bytes(source, members, LICENCE_FILE, LARGEST_MANIFEST)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise UntrustedBundle(f"{path} is a damaged or unusual zip file ({error}); ask for it again") from error
    if metadata is None:
        raise UntrustedBundle(f"{path} holds no {METADATA}; it is no archive of a bundle")
    try:
        bundle = Bundle.of(Path(name), parse_config(metadata, METADATA))
    except ValueError as error:
        raise UntrustedBundle(f"{METADATA} in {path} cannot be read ({error}); ask for it again") from error
    size = sum(info.file_size for info in members.values())
    named = licence_named(bundle.metadata, (licence or b"").decode(errors="replace"))
    return Peeked(bundle, named, tuple(members), size, manifest is not None, signed_by)


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
            raise UntrustedBundle(
                f"the archive holds {info.filename[:_LONGEST_NAME]!r}, which is {problem}; not unpacked"
            )
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
        "outside the bundle's folder": name.startswith("/") or ".." in parts or len(parts) < 2,
        "not a plain name": not name.isascii() or not name.isprintable() or any(char in name for char in '\\:*?"<>|'),
        "not a plain file": stat.S_IFMT(mode) not in {0, stat.S_IFREG},
        "not named like a bundle": not NAME.fullmatch(parts[0]) if parts else True,
        "packed by an unusual method": info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED},
        "encrypted": bool(info.flag_bits & 0x1),
        "a name that is too long": len(name) > _LONGEST_NAME or len(parts) > _DEEPEST_FOLDER,
        "a bomb": info.file_size > 1000 * max(info.compress_size, 1024),
    }
    return next((problem for problem, found in checks.items() if found), None)


def member_bytes(
    source: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, limit_bytes: int
) -> bytes | None:
    """One member, read whole; None if there is none."""
    if name not in members:
        return None
    try:
        return read_member(source, members[name], limit_bytes)
    except ValueError as error:
        raise UntrustedBundle(f"the archive's {error}; not unpacked") from error


def read_manifest(data: bytes | None, members: Mapping[str, zipfile.ZipInfo], name: str) -> dict[str, Sum]:
    """Files that the manifest lists; exactly those, and its signature, may be in the archive."""
    if data is None:
        raise UntrustedBundle(
            f"the archive has no {MANIFEST}; it was not packed by medseg, or is incomplete. If you know where it comes"
            " from, give --as-is: nothing then shows that it is complete"
        )
    try:
        manifest = parse_config(data, MANIFEST)
        files = {str(file): (str(entry["sha256"]), int(entry["bytes"])) for file, entry in manifest["files"].items()}
        stated = manifest["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedBundle(f"{MANIFEST} cannot be read ({error}); ask for the bundle again") from error
    if stated != name:
        raise UntrustedBundle(f"the archive's folder is {name!r}, its manifest is of {stated!r}; not unpacked")
    found = set(members) - {MANIFEST, SIGNATURE}
    if extra := sorted(found - set(files)):
        raise UntrustedBundle(f"the archive holds {extra[0]!r}, which its manifest does not list; not unpacked")
    if missing := sorted(set(files) - found):
        raise UntrustedBundle(f"the archive lacks {missing[0]!r}, which its manifest lists; ask for it again")
    return files


def check_signature(
    source: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    manifest: bytes | None,
    key: str | Path | None,
) -> str | None:
    """Fingerprint of the key that signed the manifest's bytes, which nobody has parsed by then."""
    trusted = read_public_key(key) if key is not None else None
    signature = member_bytes(source, members, SIGNATURE, _LARGEST_SIGNATURE)
    if signature is None or manifest is None:
        if trusted is not None:
            raise UntrustedBundle("the bundle is not signed, though a key was given; ask for a signed one")
        return None
    return verify_signature(manifest, signature, trusted)
