"""Several raters of one case: the prediction against each, and the raters against each other, in the same measures.

How far people agree is what a model can be asked for: a Dice of 0.85 is poor where raters reach 0.95, and all that can
be had where they reach 0.85.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_COLUMNS
from medseg.evaluation.statistics import Bootstrap, summarise_structures
from medseg.evaluation.tables import cells
from medseg.files import write_text
from medseg.labels.label_map import LabelMap
from medseg.tables import table_text

RATERS_CSV = "raters.csv"
PREDICTION = "prediction"
_HEAD = (*CSV_COLUMNS[:3], "compared", "with", *CSV_COLUMNS[3:])

Score = Callable[[NDArray[Any], NDArray[Any]], Sequence[StructureResult]]


@dataclass(frozen=True)
class Between:
    """A structure as ``compared`` has it, the prediction or a rater, against ``reference``, another rater."""

    compared: str
    reference: str
    row: StructureResult


def compare_raters(
    prediction: NDArray[Any], maps: Mapping[str, LabelMap], score: Score, ignore: int | None = None
) -> list[Between]:
    """The prediction against every rater, then every pair of raters, the later one named taken as prediction.

    ``score`` is :func:`~medseg.evaluation.case.evaluate_case` with everything but the two arrays. What either rater did
    not judge (``ignore``) does not count.
    """
    arrays = {name: found.array for name, found in maps.items()}
    pairs = [(PREDICTION, prediction, name) for name in arrays]
    pairs += [(second, arrays[second], first) for first, second in combinations(arrays, 2)]

    def other(who: str, array: NDArray[Any], name: str) -> NDArray[Any]:
        return arrays[name] if ignore is None or who == PREDICTION else np.where(array == ignore, ignore, arrays[name])

    return [Between(who, name, row) for who, array, name in pairs for row in score(array, other(who, array, name))]


def named(between: Sequence[Between], case_id: str) -> list[Between]:
    """The same with their case."""
    return [replace(one, row=replace(one.row, case_id=case_id)) for one in between]


def write_raters(path: Path, between: Iterable[Between]) -> None:
    """Write ``raters.csv``: one row per case, structure and pair."""
    write_text(path, table_text([_HEAD, *(cells(one.row, one.compared, one.reference) for one in between)]))


def summarise_raters(
    between: Sequence[Between], patients: Mapping[str, str], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """What ``metrics.json`` says: for every pair the averages over cases, as for the prediction."""
    pairs: dict[tuple[str, str], list[StructureResult]] = {}
    for one in between:
        pairs.setdefault((one.compared, one.reference), []).append(one.row)
    return [
        {"compared": compared, "with": reference, "structures": summarise_structures(rows, patients, bootstrap)}
        for (compared, reference), rows in pairs.items()
    ]
