"""SHA-256 sums of what an item names, whether one file, one file per channel, or a folder of DICOM files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medseg.errors import UsageError
from medseg.files import sha256_file
from medseg.ingest.names import is_apple_double
from medseg.manifests.manifest import Item, Manifest, read_json_object

__all__ = ["image_sums", "item_checksums", "learnt_sums", "path_checksum", "with_checksums"]

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


def learnt_sums(datalist: Path) -> frozenset[str]:
    """SHA-256 sums of the images that a model with this datalist was trained on; empty where it states none.

    Items of ``training`` and ``validation`` count whatever their fold: a published model has learnt from all of them.

    Raises
    ------
    UsageError
        If the file cannot be read.
    """
    content = read_json_object(datalist)
    sections = (content.get(section) for section in ("training", "validation"))
    items = [item for section in sections if isinstance(section, list) for item in section if isinstance(item, dict)]
    return frozenset(digest for item in items for digest in image_sums(item))


def image_sums(item: Mapping[str, Any]) -> list[str]:
    """The sums that an item states for its image, one for each channel."""
    stated = item.get("sha256")
    sums = stated.get("image") if isinstance(stated, Mapping) else stated
    return [value for value in (sums if isinstance(sums, list) else [sums]) if isinstance(value, str)]
