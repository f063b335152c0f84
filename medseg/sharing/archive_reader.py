"""What strangers' archives may hold, and what one says of itself, before anything of it is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.bundle import Bundle
from medseg.bundle.config import parse_config
from medseg.bundle.find import LICENCE_FILE, METADATA, licence_named
from medseg.bundle.policy import MANIFEST, SIGNATURE
from medseg.bundle.signing import read_public_key, verify_signature
from medseg.bundle.unpacking import LARGEST_DIRECTORY, Sum, most_bytes, safe_members
from medseg.errors import UntrustedBundle, UsageError
from medseg.files import open_zip, read_member

LARGEST_MANIFEST = 4 << 20  # 10,000 files of 400 bytes each
_LARGEST_SIGNATURE = 16 << 10


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
