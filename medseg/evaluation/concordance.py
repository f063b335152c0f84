"""Several results of one case compared without truth: how far they agree, which stands apart, how right each may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.case import evaluate_case
from medseg.evaluation.matching import Matched
from medseg.evaluation.raters import Between, named, summarise_raters
from medseg.evaluation.statistics import Bootstrap, summarise
from medseg.geometry import Geometry
from medseg.labels.label_map import find_boxes, joined

MARGIN = 0.05
"""By how much, unless asked otherwise, the odd one out agrees less than the others with each other (mean Dice)."""

MOST_READERS = 12
"""The model of estimated Dice looks at all combinations of what they say."""

DEFINITIONS = {
    "agreement": "mean Dice of a reader with each of the others; of a case the mean over its structures",
    "odd_one_out": "of at least three readers the one of lowest agreement, if that lies at least `margin` below the "
    "mean Dice of the others with each other; by structure, and by case from the means over its structures",
    "estimated_dice": "of at least three readers: expected Dice with the truth that Dawid and Skene's model (1979; for "
    "masks it is STAPLE, Warfield et al. 2004) infers in each case and structure from how the masks coincide; it takes "
    "the readers' errors for independent, so that an error that they share counts as right",
    "missed": "the reader lacks the structure and more than half of the others have it",
    "invented": "the reader has the structure and more than half of the others lack it",
    "pairs": "missed: only `with` has the structure, invented: only `compared` has it; Dice is 0, no distance exists",
}
_MOST_ROUNDS, _SETTLED = 200, 1e-6

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Opinion:
    """What one reader says of a structure of a case, and how that stands to what the others say.

    ``agreement`` and ``estimated_dice`` are None where nobody has the structure, the latter also with two readers.
    """

    case_id: str
    structure: str
    reader: str
    volume_ml: float
    agreement: float | None
    estimated_dice: float | None
    missed: bool
    invented: bool
    odd: bool


@dataclass(frozen=True)
class Concord:
    """One case: every pair, every opinion, and who is the odd one out over all structures (empty: nobody)."""

    case_id: str
    between: Sequence[Between]
    opinions: Sequence[Opinion]
    odd: str = ""

    @property
    def agreement(self) -> float | None:
        """Mean Dice over pairs and structures; None if nobody has any structure."""
        known = [one.row.dice for one in self.between if one.row.dice is not None]
        return float(np.mean(known)) if known else None

    @property
    def apart_mm(self) -> float | None:
        """Largest HD95 of a pair; None if no two have the same structure."""
        return max((d for one in self.between if (d := one.row.values["hd95_mm"]) is not None), default=None)

    @property
    def worst(self) -> float:
        """What cases are ordered by: the lowest agreement of a reader in a structure."""
        return min((one.agreement for one in self.opinions if one.agreement is not None), default=1.0)


def compare_case(
    case_id: str,
    maps: Mapping[str, NDArray[Any]],
    geometry: Geometry,
    structures: Sequence[Matched],
    margin: float = MARGIN,
) -> Concord:
    """Compare the label maps of one case, all on one grid, structure by structure.

    ``maps``: label maps by reader, at most 12 of them, axes (i, j, k). ``structures``: what is compared; a structure
    counts for the readers that have it and that labelled this case. ``margin``: see ``odd_one_out`` in
    :data:`DEFINITIONS`.
    """
    boxes = {reader: find_boxes(array) for reader, array in maps.items()}
    between: list[Between] = []
    opinions: list[Opinion] = []
    tables: list[NDArray[np.float64]] = []
    readers = list(maps)
    for label, structure in enumerate(structures, start=1):
        asked = [reader for reader in readers if reader in structure.members]
        masks = _cropped({reader: (maps[reader], boxes[reader]) for reader in asked}, structure)
        rows = _pairs(masks, label, structure.name, geometry)
        table = np.full((len(readers), len(readers)), np.nan)
        for one in rows:
            i, j = readers.index(one.compared), readers.index(one.reference)
            table[i, j] = table[j, i] = np.nan if one.row.dice is None else one.row.dice
        between += rows
        tables.append(table)
        own = table[np.ix_(*[[readers.index(reader) for reader in asked]] * 2)]
        opinions += _opinions(case_id, structure.name, masks, own, geometry.voxel_volume_mm3 / 1000.0, margin)
    apart = odd_one_out(_mean(np.array(tables).reshape(-1, len(readers), len(readers)), 0), margin)
    return Concord(case_id, named(between, case_id), opinions, "" if apart is None else readers[apart])


def _cropped(maps: Mapping[str, tuple[NDArray[Any], Mapping[int, Any]]], structure: Matched) -> dict[str, Mask]:
    """Masks of a structure in a box that holds it in every map."""
    values = {reader: structure.members[reader].values for reader in maps}
    found = [box[value] for reader, (_, box) in maps.items() for value in values[reader] if value in box]
    box = joined(found) or (slice(0, 1),) * 3
    return {reader: np.isin(array[box], values[reader]) for reader, (array, _) in maps.items()}


def _pairs(masks: Mapping[str, Mask], label: int, name: str, geometry: Geometry) -> list[Between]:
    """Every pair of readers, the later one named taken as prediction."""
    arrays = {reader: mask.view(np.uint8) for reader, mask in masks.items()}
    spacing_mm, axes_mm = geometry.spacing_mm, geometry.affine[:3, :3]
    return [
        Between(second, first, replace(row, label=label))
        for first, second in combinations(arrays, 2)
        for row in evaluate_case(arrays[second], arrays[first], spacing_mm, {1: name}, axes_mm=axes_mm)
    ]


def _opinions(
    case_id: str, name: str, masks: Mapping[str, Mask], dice: NDArray[np.float64], voxel_ml: float, margin: float
) -> list[Opinion]:
    has = np.array([mask.any() for mask in masks.values()])
    agreement, apart = _mean(dice, 1), odd_one_out(dice, margin)
    estimated = estimated_dice(list(masks.values()))
    made = []
    for number, (reader, mask) in enumerate(masks.items()):
        others = np.delete(has, number)
        stands = float(agreement[number])
        made.append(
            Opinion(
                case_id,
                name,
                reader,
                float(np.count_nonzero(mask)) * voxel_ml,
                stands if np.isfinite(stands) else None,
                None if estimated is None else estimated[number],
                missed=bool(not has[number] and 2 * others.sum() > len(others)),
                invented=bool(has[number] and 2 * others.sum() < len(others)),
                odd=number == apart,
            )
        )
    return made


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Means of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    return np.divide(np.where(known, values, 0.0).sum(axis=axis), count, np.full(count.shape, np.nan), where=count > 0)


def odd_one_out(dice: NDArray[np.float64], margin: float = MARGIN) -> int | None:
    """The reader that clearly agrees less with the others than they do with each other; None where nobody does.

    ``dice``: readers × readers, symmetric, NaN on the diagonal and where nothing is known.

    Examples
    --------
    >>> odd_one_out(np.array([[np.nan, 0.9, 0.6], [0.9, np.nan, 0.65], [0.6, 0.65, np.nan]]))
    2
    """
    means = _mean(dice, 1)
    if np.isfinite(means).sum() < 3:
        return None
    lowest = int(np.nanargmin(means))
    rest = np.delete(np.delete(dice, lowest, 0), lowest, 1)
    mutual = float(_mean(rest.ravel(), 0))
    apart = mutual - means[lowest]
    return lowest if apart > 0 and apart >= margin else None  # false where nothing mutual is known


def estimated_dice(masks: Sequence[Mask]) -> list[float] | None:
    """Expected Dice of each mask with the truth that all of them let infer (Dawid and Skene's model, as STAPLE).

    Voxels on which the masks (one for each reader, of one shape) say the same are alike to the model, so it works on
    the counts of the 2^n combinations. As much background is taken as they cover together: without any nobody could be
    seen to invent. None for fewer than three masks, whose errors cannot be told apart, and where all are empty.

    Source: Dawid, Skene, *Maximum likelihood estimation of observer error-rates using the EM algorithm*, Applied
    Statistics 28:20 (1979); Warfield, Zou, Wells, IEEE TMI 23:903 (2004).
    """
    if len(masks) < 3 or not any(mask.any() for mask in masks):
        return None
    said = sum(mask.astype(np.intp) << number for number, mask in enumerate(masks))
    counts = np.bincount(np.ravel(said), minlength=1 << len(masks)).astype(np.float64)
    counts[0] = counts[1:].sum()  # so that neither the box nor the image changes the estimate
    votes = (np.arange(len(counts))[:, None] >> np.arange(len(masks)) & 1).astype(np.float64)
    true = votes.mean(axis=1)  # probability that a voxel of this combination belongs to the structure
    for _ in range(_MOST_ROUNDS):
        inside, outside = counts * true, counts * (1.0 - true)
        odds = np.log(inside.sum() + 1e-12) - np.log(outside.sum() + 1e-12)
        yes = [np.clip(part @ votes / max(part.sum(), 1e-12), 1e-6, 1 - 1e-6) for part in (inside, outside)]
        ratio = votes @ np.log(yes[0] / yes[1]) + (1.0 - votes) @ np.log((1.0 - yes[0]) / (1.0 - yes[1]))
        before, true = true, 1.0 / (1.0 + np.exp(-np.clip(odds + ratio, -500.0, 500.0)))
        if np.abs(true - before).max(where=counts > 0, initial=0.0) < _SETTLED:
            break
    inside = counts * true
    return [float(value) for value in 2.0 * (inside @ votes) / np.maximum(inside.sum() + counts @ votes, 1e-12)]


def summarise_cases(cases: Sequence[Concord], bootstrap: Bootstrap) -> dict[str, Any]:
    """What ``concord.json`` says of all cases: pairs and readers, with intervals by bootstrap over cases."""
    said: dict[str, dict[str, list[Opinion]]] = {}
    for one in (opinion for case in cases for opinion in case.opinions):
        said.setdefault(one.reader, {}).setdefault(one.structure, []).append(one)
    return {
        "n_cases": len(cases),
        "odd_one_out": {reader: [case.case_id for case in cases if case.odd == reader] for reader in said},
        "readers": {
            reader: {name: _summary(found, bootstrap) for name, found in of.items()} for reader, of in said.items()
        },
        "pairs": summarise_raters([one for case in cases for one in case.between], {}, bootstrap),
    }


def _summary(opinions: Sequence[Opinion], bootstrap: Bootstrap) -> dict[str, Any]:
    figures = ("agreement", "estimated_dice", "volume_ml")
    values = np.array([[getattr(one, name) for name in figures] for one in opinions], dtype=np.float64)
    found = summarise(values, [one.case_id for one in opinions], bootstrap)
    counted = {f"n_{what}": sum(getattr(one, what) for one in opinions) for what in ("missed", "invented", "odd")}
    return {**counted, **{name: asdict(summary) for name, summary in zip(figures, found, strict=True)}}
