"""Make a manifest from whatever way a dataset lies on disk, with the SHA-256 sums of its files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from medseg.errors import UsageError
from medseg.files import sha256_file
from medseg.ingest.record import is_apple_double
from medseg.labels.regions import ORDER_KEY
from medseg.labels.scheme import MAPPING_KEY, LabelScheme
from medseg.manifests.items import Item
from medseg.manifests.manifest import Manifest


def create(
    images: Path,
    labels: Path | None = None,
    *,
    patient_pattern: str | None = None,
    image_patterns: Sequence[str] = (),
    label_pattern: str | None = None,
    names: Mapping[int, str] | None = None,
    mapping: Mapping[int, int] | None = None,
    checksums: bool = True,
) -> Manifest:
    """Make a manifest from folders, a Decathlon or nnU-Net ``dataset.json``, or BIDS derivatives.

    Parameters
    ----------
    images
        A folder of images, a BIDS dataset, or a datalist or ``dataset.json`` (or the folder that holds one).
    labels
        A folder of label maps or a BIDS derivative; not needed where ``images`` names them itself.
    patient_pattern
        Regular expression searched in each image's path; its first group (or the whole match) is the patient.
        By default each case is a patient of its own, and in BIDS each subject.
    image_patterns, label_pattern
        Where images and labels lie below ``images``, such as ``*/t1.nii.gz`` and ``*/seg.nii.gz``: what the wildcards
        stand for is the case. One image pattern for each channel.
    names
        Names of the labels by value; replace what the dataset declares itself.
    mapping
        Value in the label files → label that is meant; recorded in the manifest and applied by everyone who reads a
        label of it. The files stay as they are.
    checksums
        Add the SHA-256 sums of all files, so that the audit can tell when one has changed.

    Raises
    ------
    UsageError
        If nothing usable is found, or images and labels cannot be matched without guessing.
    """
    from medseg.manifests import layout_bids, layout_folders  # not needed for sums of files

    for path in (images, labels):
        if path is not None and not path.exists():
            raise UsageError(f"cannot find {path}; give an existing folder or dataset.json")
    if image_patterns or label_pattern:
        manifest = layout_folders.read_patterns(images, image_patterns, label_pattern, labels)
    elif images.is_file() or (labels is None and (images / "dataset.json").is_file()):
        manifest = Manifest.read(images)
    elif layout_bids.is_bids(images):
        manifest = layout_bids.read(images, labels)
    else:
        manifest = layout_folders.read_folders(images, labels)
    if patient_pattern is not None:
        manifest = manifest.with_keys(_patients(patient_pattern))
    manifest = _with_labels(manifest, names or {}, mapping or {})
    return manifest.with_keys(lambda item: {"sha256": _checksums(manifest, item)}) if checksums else manifest


def _with_labels(manifest: Manifest, names: Mapping[int, str], mapping: Mapping[int, int]) -> Manifest:
    """Declare the labels: as asked, else as the dataset does, renumbered as its files are."""
    scheme = LabelScheme.of(manifest.content, "the dataset", mapping)
    if names:
        scheme = LabelScheme(names, scheme.mapping)
    unnamed = sorted(set(mapping.values()) - {0} - set(scheme.values)) if scheme.names else []
    if unnamed:
        raise UsageError(
            f"--map makes {unnamed[0]} a label, which has no name; give it one with --label {unnamed[0]}=NAME (--label "
            "replaces the names that the dataset declares, so name every structure)"
        )
    moved = {str(value): label for value, label in sorted({**scheme.mapping, **mapping}.items())}
    kept = {key: value for key, value in manifest.content.items() if key != ORDER_KEY}
    return replace(manifest, content={**kept, **scheme.to_json(), **({MAPPING_KEY: moved} if moved else {})})


def _patients(pattern: str) -> Callable[[Item], dict[str, str]]:
    """The key ``patient_id`` of an item, from its image's path."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error

    def patient(item: Item) -> dict[str, str]:
        image = item["image"] if isinstance(item["image"], str) else item["image"][0]
        match = expression.search(image)
        if match is None:
            raise UsageError(f"the patient pattern {pattern!r} matches nothing in {image}; widen it")
        return {"patient_id": match[1] if expression.groups else match[0]}

    return patient


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


def _checksums(manifest: Manifest, item: Item) -> dict[str, str | list[str]]:
    """The sums of an item's image and label; a list where the item lists one file per channel."""
    sums: dict[str, str | list[str]] = {}
    for key in ("image", "label"):
        paths = manifest.files(item, key)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UsageError(f"cannot find {missing[0]}; check the manifest's dataset_dir or give --dataset-dir")
        if paths:
            values = [path_checksum(path) for path in paths]
            sums[key] = values if isinstance(item[key], list) else values[0]
    return sums
