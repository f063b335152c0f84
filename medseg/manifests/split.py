"""Split a manifest by patient into folds and a test set, stratified by what the labels contain.

Groups of cases (patients) are dealt out one by one, largest and rarest first, each to the part whose content lies
furthest below its share: the iterative stratification of Sechidis et al. (ECML PKDD 2011), with label volumes in
thirds instead of classes. The result depends on the seed and on the items alone, not on their order in the file.

Folds that lack a structure: where training never sees it, or validation cannot judge it.

Which items of a datalist are meant: a section, or what a fold holds out.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.labels import LabelMap, read_label_map
from medseg.labels.scheme import listed
from medseg.manifests.manifest import Item, Manifest

_THIRDS = 3
_log = logging.getLogger(__name__)


def split(manifest: Manifest, folds: int, seed: int, test_fraction: float = 0.0, *, stratify: bool = True) -> Manifest:
    """Put every patient into one of ``folds`` folds or into the test set.

    Parameters
    ----------
    manifest
        Its training items are split anew; an existing test set stays as it is unless ``test_fraction`` is given,
        in which case test items with a label take part in the split again.
    folds
        Number of folds of nearly equal size, numbered from 0.
    seed
        The same seed and items give the same split on every machine.
    test_fraction
        Share of the cases that is held out as ``test``, in [0, 1).
    stratify
        Read every label and give each part its share of every label's presence and volume.

    Returns
    -------
    Manifest
        A new manifest with ``fold`` in each training item and a ``split`` record of how it was made.

    Raises
    ------
    UsageError
        If there are fewer patients than parts, or a label file is missing.
    """
    if folds < 1 or not 0 <= test_fraction < 1:
        raise UsageError(
            f"found {folds} folds, test fraction {test_fraction}; expected at least 1 and a share in [0, 1)"
        )
    section = "testing" if "testing" in manifest.content else "test"
    pool = manifest.training + [item for item in manifest.test if test_fraction and "label" in item]
    unlabelled = [item for item in manifest.test if not (test_fraction and "label" in item)]
    groups = _by_patient(pool)
    if len(groups) < folds + (test_fraction > 0):
        raise UsageError(f"found {len(groups)} patients for {folds} folds; a fold needs at least one: lower --folds")
    shares = [(1 - test_fraction) / folds] * folds + ([test_fraction] if test_fraction else [])
    volumes_ml = [_volumes_ml(manifest, item) for item in pool] if stratify else []
    part_of = assign_folds(_features(groups, pool, volumes_ml), shares, seed)
    training: list[Item] = []
    test: list[Item] = list(unlabelled)
    for item in pool:
        part = part_of[patient_of(item)]
        bare = {key: value for key, value in item.items() if key != "fold"}
        (test if part == folds else training).append(bare if part == folds else {**bare, "fold": part})
    record = {
        "folds": folds,
        "seed": seed,
        "test_fraction": test_fraction,
        "by": "patient_id",
        "stratified_by": "presence and thirds of the volume of each label" if stratify else "number of cases",
    }
    _tell_gaps(manifest, pool, volumes_ml, part_of, folds)
    counts = {"numTraining": len(training), "numTest": len(test)} if "numTraining" in manifest.content else {}
    sections = {"training": training} | ({section: test} if test or section in manifest.content else {})
    rest = {key: value for key, value in manifest.content.items() if key not in ("training", section)}
    return Manifest({**rest, **counts, "split": record, **sections}, manifest.dataset_dir)


def patient_of(item: Item) -> str:
    """The patient an item belongs to; an item that names none is a patient of its own, known by its image."""
    patient = item.get("patient_id")
    return str(patient) if patient not in (None, "") else f"image:{item['image']}"


def assign_folds(features: Mapping[str, NDArray[np.float64]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Deal groups out to parts so that every part gets its share of every feature.

    Parameters
    ----------
    features
        For each group a vector of counts; the first entry is its number of cases.
    shares
        Share of the whole that each part is to get; sums to 1.
    seed
        Decides the order among equals.

    Returns
    -------
    dict
        The index of the part for each group.
    """
    names = sorted(features)
    random.Random(seed).shuffle(names)
    table = np.stack([features[name] for name in names])
    totals = table.sum(axis=0)
    rarity = (table / np.maximum(totals, 1.0)).sum(axis=1)
    targets = np.outer(shares, totals)
    filled = np.zeros_like(targets)
    part_of: dict[str, int] = {}
    for row in np.argsort(-rarity, kind="stable"):
        after, before = filled + table[row] - targets, filled - targets
        cost = ((after**2 - before**2) / np.maximum(targets, 1e-9)) @ _weights(len(totals))
        part = int(np.argmin(np.round(cost, 9)))
        filled[part] += table[row]
        part_of[names[row]] = part
    return part_of


def strata(volumes_ml: Sequence[Mapping[int, float]]) -> NDArray[np.float64]:
    """One row of counts per case: 1, then for each label in which third of its volumes the case lies.

    A label that is absent from a case fills none of its thirds, so presence is stratified as well.
    """
    labels = sorted({label for case in volumes_ml for label in case})
    rows = np.zeros((len(volumes_ml), 1 + _THIRDS * len(labels)))
    rows[:, 0] = 1.0
    for column, label in enumerate(labels):
        present = [case[label] for case in volumes_ml if label in case]
        edges = np.quantile(present, np.arange(1, _THIRDS) / _THIRDS)
        for row, case in enumerate(volumes_ml):
            if label in case:
                rows[row, 1 + _THIRDS * column + int(np.searchsorted(edges, case[label]))] = 1.0
    return rows


def _weights(length: int) -> NDArray[np.float64]:
    """Equal size of the parts matters as much as everything else together."""
    weights = np.ones(length)
    weights[0] = max(length - 1, 1)
    return weights


def _by_patient(items: Sequence[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[patient_of(item)].append(item)
    return dict(groups)


def _features(
    groups: Mapping[str, Sequence[Item]], pool: Sequence[Item], volumes_ml: Sequence[Mapping[int, float]]
) -> dict[str, NDArray[np.float64]]:
    """What each patient brings: cases, and strata of label volumes where these are known."""
    if not volumes_ml:
        return {patient: np.array([float(len(items))]) for patient, items in groups.items()}
    rows = strata(volumes_ml)
    features = {patient: np.zeros(rows.shape[1]) for patient in groups}
    for item, row in zip(pool, rows, strict=True):
        features[patient_of(item)] += row
    return features


def _tell_gaps(
    manifest: Manifest,
    pool: Sequence[Item],
    volumes_ml: Sequence[Mapping[int, float]],
    part_of: Mapping[str, int],
    folds: int,
) -> None:
    """Warn where a structure is rarer than the folds."""
    placed = [(part_of[patient_of(item)], volumes) for item, volumes in zip(pool, volumes_ml, strict=bool(volumes_ml))]
    gaps = explain_fold_gaps([(part, volumes) for part, volumes in placed if part < folds], manifest.labels)
    if gaps:
        _log.warning("%s; use fewer folds, or add cases that have it", gaps)


def _volumes_ml(manifest: Manifest, item: Item) -> dict[int, float]:
    volumes: dict[int, float] = {}
    for path in manifest.files(item, "label"):
        volumes |= _label_map(path, manifest).volumes_ml
    return volumes


def _label_map(path: Path, manifest: Manifest) -> LabelMap:
    if not path.exists():
        raise UsageError(f"cannot find the label {path}; check the manifest's dataset_dir or give --dataset-dir")
    return read_label_map(path, mapping=manifest.scheme.mapping)


_SHOWN = 6


def explain_fold_gaps(cases: Sequence[tuple[int | None, Collection[int]]], names: Mapping[int, str]) -> str:
    """What each fold lacks of the structures that occur, in words; empty if nothing, or if there is one fold only.

    Parameters
    ----------
    cases
        Fold (``None``: trained on in every fold) and label values of each labelled training case.
    names
        Structures by value.
    """
    folds = sorted({fold for fold, _ in cases if fold is not None})
    if len(folds) < 2:
        return ""
    labels = sorted({value for _, values in cases for value in values} - {0})
    unseen: dict[int, int] = {}
    unjudged: dict[int, list[int]] = {}
    for label in labels:
        having = {fold for fold, values in cases if label in values}
        if len(having) == 1 and (only := next(iter(having))) is not None:
            unseen[label] = only
        if missing := [fold for fold in folds if fold not in having]:
            unjudged[label] = missing
    parts = [
        f"training of fold {fold} never sees {_structure(label, names)}, which only cases of that fold have"
        for label, fold in unseen.items()
    ]
    parts += [
        f"validation of fold{'s' if len(where) > 1 else ''} {listed(where)} lacks {_structure(label, names)}"
        for label, where in unjudged.items()
    ]
    return "; ".join(parts[:_SHOWN]) + (f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")


def _structure(label: int, names: Mapping[int, str]) -> str:
    return f"{label} ({names[label]})" if label in names else str(label)


_SAME_SECTION = {"test": ("test", "testing"), "testing": ("test", "testing")}


@dataclass(frozen=True)
class Part:
    """Which items of a datalist are meant.

    Parameters
    ----------
    section
        ``"training"``, ``"validation"`` or ``"test"`` (also called ``"testing"``); None for all.
    fold
        The training items that this fold holds out; None for all.
    """

    section: str | None = None
    fold: int | None = None

    def of(self, manifest: Manifest, path: Path) -> list[Item]:
        """The items of a datalist that are meant; ``path`` is where it lies, for messages.

        Raises
        ------
        UsageError
            If there are none, or a fold is asked for outside of training.
        """
        if self.fold is not None:
            if self.section not in {None, "training"}:
                raise UsageError(f"--fold {self.fold} chooses training items, found --section {self.section}; drop one")
            return manifest.fold(self.fold)[1]
        names = _SAME_SECTION.get(self.section or "", (self.section,))
        chosen = [item for section, _, item in manifest.items() if self.section is None or section in names]
        if self.section is not None and not chosen:
            sizes = Counter(section for section, _, _ in manifest.items())
            held = ", ".join(f"{count} under {name}" for name, count in sizes.items()) or "none"
            raise UsageError(
                f"--section {self.section}: {path} has no such items (found {held}); choose another section"
            )
        return chosen
