"""A datalist: who is in the study, where the files are, and how they are split.

The form on disk is the JSON of the Medical Segmentation Decathlon that MONAI reads, with ``fold``, ``patient_id``
and ``sha256`` added to each item. medseg keeps the whole JSON object, so keys it does not know survive a round trip.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.files import write_json
from medseg.labels.scheme import LabelScheme
from medseg.manifests.items import check_item

SECTIONS = ("training", "validation", "test", "testing")
"""Names under which datalists keep their items."""

DATASET_DIR_KEY = "dataset_dir"
"""Where relative paths start, itself relative to the datalist's folder; absent: that folder."""

Item = dict[str, Any]
"""One case: ``image`` (one path, or one per channel), ``label``, ``patient_id``, ``fold``, ``sha256`` and more."""


@dataclass(frozen=True)
class Manifest:
    """A datalist and the folder that its paths start from.

    Parameters
    ----------
    content
        The whole JSON object, unknown keys included.
    dataset_dir
        Folder that relative paths of items start from.
    """

    content: Mapping[str, Any]
    dataset_dir: Path

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, dataset_dir: str | os.PathLike[str] | None = None) -> Manifest:
        """Read a datalist: MONAI's or the Decathlon's JSON, or an nnU-Net ``dataset.json`` with its splits.

        Parameters
        ----------
        path
            The JSON file, or a folder that holds a ``dataset.json``.
        dataset_dir
            Where relative paths start; by default the datalist's own ``dataset_dir``, else the folder it lies in.

        Raises
        ------
        UsageError
            If the file is missing, is not JSON, or has no list of items.
        """
        from medseg.manifests import layout_nnunet as nnunet

        path = Path(path)
        path = path / "dataset.json" if path.is_dir() else path
        content = read_json_object(path)
        if nnunet.is_nnunet(content):
            read = nnunet.read(path)
            return read if dataset_dir is None else replace(read, dataset_dir=Path(dataset_dir))
        for section in SECTIONS:
            if section in content:
                content[section] = [_normal_item(item, path) for item in _as_list(content[section], path, section)]
                for item in content[section]:
                    check_item(item, path)
        if not any(section in content for section in SECTIONS):
            raise UsageError(f"{path} has none of the lists {', '.join(SECTIONS)}; give a datalist or a dataset.json")
        return cls(content, _start(path, content, dataset_dir))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON, whole or not at all; items stay relative and ``dataset_dir`` tells from where.

        The key ``dataset_dir`` is written relative to the new file's folder, and left out where they are one.
        """
        target = Path(path)
        start = os.path.relpath(self.dataset_dir.absolute(), target.absolute().parent)
        content = {key: value for key, value in self.content.items() if key != DATASET_DIR_KEY}
        if start != ".":
            first_section = next((key for key in content if key in SECTIONS), None)
            content = _insert_before(content, first_section, DATASET_DIR_KEY, Path(start).as_posix())
        write_json(target, content)

    @property
    def training(self) -> list[Item]:
        """Items to train and cross-validate on."""
        return list(self.content.get("training", []))

    @property
    def test(self) -> list[Item]:
        """Items held out of training (``test`` or ``testing``)."""
        return list(self.content.get("test", [])) or list(self.content.get("testing", []))

    @property
    def scheme(self) -> LabelScheme:
        """What the label values mean: declared names, and which values of the files are mapped to them.

        Raises
        ------
        UsageError
            If the table of labels is odd; see :func:`medseg.labels.read_label_table`.
        """
        return LabelScheme.of(self.content)

    @property
    def labels(self) -> dict[int, str]:
        """Declared label values and names, background included; empty if the datalist declares none."""
        return dict(self.scheme.names)

    @property
    def licence(self) -> str:
        """The licence under which the data may be used; empty if the datalist names none."""
        return str(self.content.get("licence") or self.content.get("license") or "").strip()

    def items(self) -> Iterator[tuple[str, int, Item]]:
        """Every item with its section and its index in it."""
        for section in SECTIONS:
            for index, item in enumerate(self.content.get(section, [])):
                yield section, index, item

    def files(self, item: Item, key: str) -> list[Path]:
        """Absolute paths behind ``item[key]`` (``"image"`` may name one file per channel); empty if absent."""
        value = item.get(key)
        names = [value] if isinstance(value, str) else list(value or [])
        return [self.dataset_dir / name for name in names]

    def fold(self, number: int) -> tuple[list[Item], list[Item]]:
        """Items to train on and items to validate on when fold ``number`` is held out.

        Raises
        ------
        UsageError
            If no training item carries that fold.
        """
        held_out = [item for item in self.training if item.get("fold") == number]
        if not held_out:
            found = sorted({item["fold"] for item in self.training if isinstance(item.get("fold"), int)})
            raise UsageError(
                f"no training item is in fold {number} (folds found: {found or 'none'}); split the manifest"
            )
        return [item for item in self.training if item.get("fold") != number], held_out

    def split(self, folds: int, seed: int, test_fraction: float = 0.0, *, stratify: bool = True) -> Manifest:
        """Put every patient into one of ``folds`` folds or into the test set; see :func:`~medseg.manifests.split`."""
        from medseg.manifests.split import split

        return split(self, folds, seed, test_fraction, stratify=stratify)

    def with_content(self, **changes: Any) -> Manifest:
        """The same manifest with some top-level keys replaced."""
        return replace(self, content={**self.content, **changes})


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a :class:`UsageError` that says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode(errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give an existing datalist") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a JSON {type(content).__name__}; expected an object with a list of items")
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ, for ``object_pairs_hook``: JSON readers drop the first of two without a word.

    Raises
    ------
    ValueError
        If a key stands twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object; keep one")
    return content


def _start(path: Path, content: Mapping[str, Any], dataset_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that paths of the datalist ``path`` start in: as asked, else as it says, else its own."""
    if dataset_dir is not None:
        return Path(dataset_dir)
    named = content.get(DATASET_DIR_KEY)
    if named is not None and not isinstance(named, str):
        raise UsageError(f"{path}: {DATASET_DIR_KEY!r} is {named!r}, expected the name of a folder")
    return path.parent / (named or "")


def _as_list(value: Any, path: Path, section: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{path}: {section!r} is a {type(value).__name__}; expected a list of items")
    return value


def _normal_item(item: Any, path: Path) -> Item:
    """MSD lists its test images as bare strings and writes paths with a leading ``./``."""
    item = {"image": item} if isinstance(item, str) else item
    if not isinstance(item, dict) or "image" not in item:
        raise UsageError(f"{path}: found an item without an image: {json.dumps(item)[:120]}")
    return {key: _without_dot(value) if key in ("image", "label") else value for key, value in item.items()}


def _without_dot(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_dot(part) for part in value]
    return value.removeprefix("./") if isinstance(value, str) else value


def _insert_before(content: dict[str, Any], before: str | None, key: str, value: Any) -> dict[str, Any]:
    ordered: dict[str, Any] = {}
    for name, existing in content.items():
        if name == before:
            ordered[key] = value
        ordered[name] = existing
    ordered.setdefault(key, value)
    return ordered
