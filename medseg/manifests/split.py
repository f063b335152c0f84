"""Split cases by patient into folds and a test set, stratified by what the labels contain.

Patients are assigned one by one, largest and rarest first, each to the part whose content lies furthest below its
share: the iterative stratification of Sechidis et al. (ECML PKDD 2011), with label volumes in thirds instead of
classes. The result depends on the seed and on the items alone, not on their order in the file.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.labels.scheme import listed
from medseg.manifests.items import Item, patient_of

_THIRDS = 3
_SHOWN = 6


def assign_folds(
    items: Sequence[Item],
    folds: int,
    seed: int,
    test_fraction: float = 0.0,
    volumes_ml: Sequence[Mapping[int, float]] = (),
) -> list[int | None]:
    """The fold of each item, from 0; ``None`` for the test set. All items of a patient get the same.

    ``seed``: decides the order among equals: the same seed and items give the same folds on every machine.
    ``test_fraction``: share of the cases in the test set, in [0, 1). ``volumes_ml``: volume of each label in each item;
    every fold gets its share of every label's presence and volume. Empty to balance the number of cases alone. Raises
    ``UsageError`` if there are fewer patients than parts.
    """
    if folds < 1 or not 0 <= test_fraction < 1:
        raise UsageError(f"found {folds} folds, test fraction {test_fraction}; expected 1 or more, a share in [0, 1)")
    rows = stratify(volumes_ml) if volumes_ml else np.ones((len(items), 1))
    features: dict[str, NDArray[np.float64]] = {}
    for item, row in zip(items, rows, strict=True):
        features[patient_of(item)] = features.get(patient_of(item), 0.0) + row
    if len(features) < folds + (test_fraction > 0):
        raise UsageError(f"found {len(features)} patients for {folds} folds; a fold needs at least one: lower --folds")
    shares = [(1 - test_fraction) / folds] * folds + ([test_fraction] if test_fraction else [])
    part_of = _assign(features, shares, seed)
    return [part if part < folds else None for part in (part_of[patient_of(item)] for item in items)]


def _assign(features: Mapping[str, NDArray[np.float64]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """The part of each patient, so that every part gets its share of every feature."""
    names = sorted(features)
    random.Random(seed).shuffle(names)
    table = np.stack([features[name] for name in names])
    totals = table.sum(axis=0)
    rarity = (table / np.maximum(totals, 1.0)).sum(axis=1)
    targets = np.outer(shares, totals)
    filled = np.zeros_like(targets)
    # Equal size of the parts matters as much as everything else together.
    weights = np.ones(len(totals))
    weights[0] = max(len(totals) - 1, 1)
    part_of: dict[str, int] = {}
    for row in np.argsort(-rarity, kind="stable"):
        after, before = filled + table[row] - targets, filled - targets
        cost = ((after**2 - before**2) / np.maximum(targets, 1e-9)) @ weights
        part = int(np.argmin(np.round(cost, 9)))
        filled[part] += table[row]
        part_of[names[row]] = part
    return part_of


def stratify(volumes_ml: Sequence[Mapping[int, float]]) -> NDArray[np.float64]:
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


def describe_missing(cases: Sequence[tuple[int | None, Collection[int]]], names: Mapping[int, str]) -> str:
    """What each fold lacks of the structures that occur, in words; empty if nothing, or if there is one fold only.

    ``cases`` holds fold (``None``: trained on in every fold) and label values of each labelled training case.
    """
    folds = sorted({fold for fold, _ in cases if fold is not None})
    if len(folds) < 2:
        return ""
    unseen, unvalidated = [], []
    for label in sorted({value for _, values in cases for value in values} - {0}):
        structure = f"{label} ({names[label]})" if label in names else str(label)
        having = {fold for fold, values in cases if label in values}
        if len(having) == 1 and None not in having:
            fold = next(iter(having))
            unseen.append(f"training of fold {fold} never sees {structure}, which only cases of that fold have")
        if missing := [fold for fold in folds if fold not in having]:
            unvalidated.append(f"validation of fold{'s' * (len(missing) > 1)} {listed(missing)} lacks {structure}")
    parts = [*unseen, *unvalidated]
    return "; ".join(parts[:_SHOWN]) + (f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")
