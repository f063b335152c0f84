"""SHA-256 sums of what an item names, whether one file, one file per channel, or a folder of DICOM files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from medseg.errors import UsageError
from medseg.files import sha256_file
from medseg.ingest.names import is_apple_double
from medseg.manifests.manifest import Item, Manifest

__all__ = ["item_checksums", "path_checksum", "with_checksums"]

_HASHED_KEYS = ("image", "label")


def path_checksum(path: Path, known: Mapping[Path, str] = MappingProxyType({})) -> str:
    """SHA-256 of a file; of a folder, the SHA-256 over its files' sums and relative names in sorted order.

    ``known`` holds sums of files that need not be read again.
    """
    if not path.is_dir():
        return sha256_file(path)
    total = hashlib.sha256()
    files = (file for file in path.rglob("*") if file.is_file() and not is_apple_double(file))
    for name in sorted(file.relative_to(path).as_posix() for file in files):
        own = known.get(path / name) or sha256_file(path / name)
        total.update(f"{own}  {name}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def item_checksums(manifest: Manifest, item: Item) -> dict[str, str | list[str]]:
    """The sums of an item's image and label; a list where the item lists one file per channel.

    Raises
    ------
    UsageError
        If a file is missing.
    """
    sums: dict[str, str | list[str]] = {}
    for key in _HASHED_KEYS:
        paths = manifest.files(item, key)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UsageError(f"cannot find {missing[0]}; check the manifest's dataset_dir or give --dataset-dir")
        if paths:
            values = [path_checksum(path) for path in paths]
            sums[key] = values if isinstance(item[key], list) else values[0]
    return sums


def with_checksums(manifest: Manifest) -> Manifest:
    """The same manifest with a fresh ``sha256`` in every item."""
    sections = {section: list(manifest.content[section]) for section, _, _ in manifest.items()}
    for section, index, item in manifest.items():
        sections[section][index] = {**item, "sha256": item_checksums(manifest, item)}
    return manifest.with_content(**sections)
