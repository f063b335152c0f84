"""A datalist: who is in the study, where the files are, and how they are split.

The form on disk is the JSON of the Medical Segmentation Decathlon that MONAI reads, with ``fold``, ``patient_id``
and ``sha256`` added to each item. medseg keeps the whole JSON object, so keys it does not know survive a round trip.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.files import write_json
from medseg.labels.label_map import LabelMap
from medseg.labels.read import read_label
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme
from medseg.manifests.items import SECTIONS, Item, entries_of, files_of, map_files, read_items, read_json_object
from medseg.manifests.layout_nnunet import is_nnunet, read_nnunet
from medseg.manifests.split import assign_folds, describe_missing

DATASET_DIR_KEY = "dataset_dir"
"""Where relative paths start, itself relative to the datalist's folder; absent: that folder."""

_SAME_SECTION = ("test", "testing")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """A datalist: the whole JSON object, unknown keys included, and the folder that relative paths start from."""

    content: Mapping[str, Any]
    dataset_dir: Path

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, dataset_dir: str | os.PathLike[str] | None = None) -> Manifest:
        """Read a datalist: MONAI's or the Decathlon's JSON, or an nnU-Net ``dataset.json`` with its splits.

        ``path`` is the file, or a folder that holds a ``dataset.json``. Relative paths start at ``dataset_dir``; by
        default at the datalist's own, else in the folder it lies in. A UsageError if the file is missing, is not JSON,
        or has no list of items.
        """
        path = Path(path)
        path = path / "dataset.json" if path.is_dir() else path
        content = read_json_object(path)
        if is_nnunet(content):
            return cls(read_nnunet(path, content), path.parent if dataset_dir is None else Path(dataset_dir))
        content |= {key: read_items(content[key], key, path) for key in SECTIONS if key in content}
        if not any(section in content for section in SECTIONS):
            raise UsageError(f"{path} has none of the lists {', '.join(SECTIONS)}; give a datalist or a dataset.json")
        named = content.get(DATASET_DIR_KEY)
        if dataset_dir is None and named is not None and not isinstance(named, str):
            raise UsageError(f"{path}: {DATASET_DIR_KEY!r} is {named!r}, expected the name of a folder")
        return cls(content, path.parent / (named or "") if dataset_dir is None else Path(dataset_dir))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON, whole or not at all; items stay relative and ``dataset_dir`` tells from where.

        The key ``dataset_dir`` is written relative to the new file's folder, and left out where they are one.
        """
        target = Path(path)
        start = os.path.relpath(self.dataset_dir.absolute(), target.absolute().parent)
        content = {key: value for key, value in self.content.items() if key != DATASET_DIR_KEY}
        if start != ".":
            keys = list(content)
            first_section = next((number for number, key in enumerate(keys) if key in SECTIONS), len(keys))
            keys.insert(first_section, DATASET_DIR_KEY)
            content = {**dict.fromkeys(keys), **content, DATASET_DIR_KEY: Path(start).as_posix()}
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

        A UsageError if the table of labels is odd; see :func:`medseg.labels.scheme.read_label_table`.
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
        """Absolute paths behind ``item[key]``, whatever its form (:data:`~medseg.manifests.Item`); empty if absent."""
        return [self.dataset_dir / name for name in files_of(item.get(key))]

    def label_entry(self, item: Item) -> Any:
        """``item["label"]`` in the form it has, with absolute paths, as :mod:`medseg.labels` reads it."""
        return map_files(item["label"], lambda name: str(self.dataset_dir / name))

    def fold(self, number: int) -> tuple[list[Item], list[Item]]:
        """Items to train on and items to validate on when a fold is held out; a UsageError if there are none."""
        held_out = [item for item in self.training if item.get("fold") == number]
        if not held_out:
            found = sorted({item["fold"] for item in self.training if isinstance(item.get("fold"), int)})
            raise UsageError(f"no training item is in fold {number} (folds found: {found or 'none'}); split them")
        return [item for item in self.training if item.get("fold") != number], held_out

    def split(self, folds: int, seed: int, test_fraction: float = 0.0, *, stratify: bool = True) -> Manifest:
        """Put every patient into one of ``folds`` folds or into the test set; a ``split`` record says how.

        ``seed``, ``test_fraction``: see :func:`~medseg.manifests.split.assign_folds`. An existing test set stays as it
        is unless ``test_fraction`` is given, in which case test items with a label take part in the split again.
        ``stratify``: read every label and give each part its share of every label's presence and volume. Raises
        ``UsageError`` if there are fewer patients than parts, or a label file is missing.
        """
        pool = self.training + [item for item in self.test if test_fraction and "label" in item]
        test = [item for item in self.test if not (test_fraction and "label" in item)]
        volumes_ml = [self._volumes_ml(item) for item in pool] if stratify else []
        assigned = assign_folds(pool, folds, seed, test_fraction, volumes_ml)
        training: list[Item] = []
        for item, fold in zip(pool, assigned, strict=True):
            bare = {key: value for key, value in item.items() if key != "fold"}
            (test if fold is None else training).append(bare if fold is None else {**bare, "fold": fold})
        missing = describe_missing(
            [(fold, set(volumes)) for fold, volumes in zip(assigned, volumes_ml, strict=stratify) if fold is not None],
            self.labels,
        )
        if missing:
            _log.warning("%s; use fewer folds, or add cases that have it", missing)
        record = {
            "folds": folds,
            "seed": seed,
            "test_fraction": test_fraction,
            "by": "patient_id",
            "stratified_by": "presence and thirds of the volume of each label" if stratify else "number of cases",
        }
        section = "testing" if "testing" in self.content else "test"
        counts = {"numTraining": len(training), "numTest": len(test)} if "numTraining" in self.content else {}
        rest = {key: value for key, value in self.content.items() if key not in ("training", section)}
        sections = {"training": training} | ({section: test} if test or section in self.content else {})
        return Manifest({**rest, **counts, "split": record, **sections}, self.dataset_dir)

    def _volumes_ml(self, item: Item) -> dict[int, float]:
        """Volume of each label; of several raters the largest, since what one of them saw is there."""
        volumes: dict[int, float] = {}
        for labels in self.label_maps(item).values():
            volumes |= {value: max(volume, volumes.get(value, 0.0)) for value, volume in labels.volumes_ml.items()}
        return volumes

    def label_maps(self, item: Item, *, only_declared: bool = False) -> dict[str, LabelMap]:
        """The labels of an item on its image's grid by rater; one that names no rater stands under ``""``.

        Raises ``Refusal``: whatever :func:`medseg.labels.read.read_label` refuses; ``UsageError`` if a file is not
        there.
        """
        if not item.get("label"):
            return {}
        for path in self.files(item, "label"):
            if not path.exists():
                raise UsageError(f"cannot find the label {path}; check the dataset_dir or give --dataset-dir")
        rules, image = ReadingRules.of(self.content), self.files(item, "image")[0]
        return {
            rater: read_label(entry, scheme=self.scheme, rules=rules, image=image, only_declared=only_declared)
            for rater, entry in entries_of(self.label_entry(item)).items()
        }

    def with_content(self, **changes: Any) -> Manifest:
        """The same manifest with some top-level keys replaced."""
        return replace(self, content={**self.content, **changes})

    def with_keys(self, keys: Callable[[Item], Mapping[str, Any]]) -> Manifest:
        """The same manifest with some keys of every item replaced by what ``keys`` gives for it."""
        sections = [section for section in SECTIONS if section in self.content]
        changes = {section: [{**item, **keys(item)} for item in self.content[section]] for section in sections}
        return self.with_content(**changes)


@dataclass(frozen=True)
class Part:
    """Which items of a datalist are meant; ``None`` for all.

    ``section`` is ``"training"``, ``"validation"`` or ``"test"`` (also called ``"testing"``), ``fold`` the one that
    holds them out of training.
    """

    section: str | None = None
    fold: int | None = None

    def of(self, manifest: Manifest, path: Path) -> list[Item]:
        """The items of the datalist at ``path``; a UsageError if there are none, or the fold is not in it."""
        if self.fold is not None:
            if self.section not in {None, "training"}:
                raise UsageError(f"--fold {self.fold} chooses training items, found --section {self.section}; drop one")
            return manifest.fold(self.fold)[1]
        names = _SAME_SECTION if self.section in _SAME_SECTION else (self.section,)
        chosen = [item for section, _, item in manifest.items() if self.section is None or section in names]
        if self.section is not None and not chosen:
            sizes = Counter(section for section, _, _ in manifest.items())
            held = ", ".join(f"{count} under {name}" for name, count in sizes.items()) or "none"
            raise UsageError(f"--section {self.section}: {path} has no such items (found {held}); choose another")
        return chosen
