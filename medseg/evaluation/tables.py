"""``metrics.csv`` and ``metrics.json``: what an evaluation leaves behind, and how to read it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_COLUMNS, CSV_METRICS
from medseg.files import write_text
from medseg.json_shape import NUMBER, TEXT, Spec, read_json
from medseg.tables import read_table, table_text

METRICS_CSV, METRICS_JSON, LESIONS_CSV = "metrics.csv", "metrics.json", "lesions.csv"
_LESION_COLUMNS = ("case_id", "label", "name", "status", "volume_ml", "reference_volume_ml", "iou", "dice", "stratum")

_TRAINED_ON, _NOT_SCORED = "trained_on", "not_scored"
_LARGEST = 1e30
"""No measure in mm or ml comes near it."""
_FIGURES: Spec = {"mean": NUMBER, "std": NUMBER, "median": NUMBER, "ci95": [NUMBER]}
_SHARE: Spec = {"count!": NUMBER, "of!": NUMBER, "low!": NUMBER, "high!": NUMBER}
_SPREADS: Spec = {"*": {"n!": NUMBER, "mean": NUMBER, "std": NUMBER}}
_SUMMARY: Spec = {
    "predictions": TEXT,
    "references": TEXT,
    "n_unpaired": NUMBER,
    "warnings": [TEXT],
    "trained_on": {"n!": NUMBER, "of": NUMBER, "case_ids": [TEXT]},
    "accepted": {
        "left_out_as_trained_on": NUMBER,
        "judges!": [
            {"judge!": TEXT, "accepted!": _SHARE, "good!": {"*": _SHARE}, "dice!": _SPREADS, "hd95_mm!": _SPREADS}
        ],
    },
    "definitions": {"tolerance_mm": NUMBER, "percentile_rule": TEXT, "surface": TEXT},
    "structures": {
        "*": {"label": NUMBER, "n": NUMBER, "n_missed": NUMBER, "n_invented": NUMBER, "metrics": {"*": _FIGURES}}
    },
    "cases": [{"case_id!": TEXT, "prediction": TEXT, "reference": TEXT, "prediction_case_id": TEXT}],
}
"""``metrics.json``, as far as it is read again."""


def cells(row: StructureResult, *between: str) -> list[object]:
    """A row under :data:`CSV_COLUMNS`; ``between``, which two were compared, stands behind the structure's name."""
    figures = (row.values.get(metric) for metric in CSV_METRICS)
    return [row.case_id, row.label, row.name, *between, *figures, int(row.missed), int(row.invented)]


def write_csv(
    path: Path,
    results: Iterable[StructureResult],
    more_metrics: Sequence[str] = (),
    trained_on: Mapping[str, bool | None] | None = None,
) -> None:
    """Write one row per case and structure: the documented columns, then ``more_metrics``, then ``trained_on``.

    Numbers have full precision; a value that does not exist, or is not known, is an empty field; ``missed``,
    ``invented`` and ``trained_on`` are 0 or 1. The column ``trained_on`` stands where that is known of some case,
    ``not_scored``, a reason, where some structure was not annotated.
    """
    known = {case: int(learnt) for case, learnt in (trained_on or {}).items() if learnt is not None}
    results = list(results)
    reasons = any(row.not_scored for row in results)
    head = [*CSV_COLUMNS, *more_metrics, *([_TRAINED_ON] if known else []), *([_NOT_SCORED] if reasons else [])]
    rows = [
        [
            *cells(row),
            *(row.values.get(metric) for metric in more_metrics),
            *([known.get(row.case_id)] if known else []),
            *([row.not_scored] if reasons else []),
        ]
        for row in results
    ]
    write_text(path, table_text([head, *rows]))


def write_lesions(path: Path, results: Iterable[StructureResult], edges_ml: Sequence[float]) -> None:
    """Write ``lesions.csv``: one row per lesion of every case and structure."""
    rows = [
        (row.case_id, row.label, row.name, *astuple(lesion), lesion.stratum(edges_ml))
        for row in results
        for lesion in row.lesions
    ]
    write_text(path, table_text([_LESION_COLUMNS, *rows]))


def read_csv(path: Path) -> list[StructureResult]:
    """Read a ``metrics.csv`` back, with all its metric columns.

    Raises ``UsageError`` if a documented column is missing, or a number is none.
    """
    table = read_table(path)
    missing = [column for column in CSV_COLUMNS if column not in table.columns]
    if missing:
        raise UsageError(f"{path} lacks the columns {', '.join(missing)}; give a metrics.csv that medseg wrote")
    others = ("case_id", "label", "name", "missed", "invented", _TRAINED_ON, _NOT_SCORED)
    metrics = [column for column in table.columns if column not in others]
    try:
        return [
            StructureResult(
                int(row["label"]),
                row["name"],
                {metric: _figure(row[metric]) if row[metric] else None for metric in metrics},
                missed=row["missed"] == "1",
                invented=row["invented"] == "1",
                case_id=row["case_id"],
                not_scored=row.get(_NOT_SCORED, ""),
            )
            for row in table.rows
        ]
    except ValueError as error:
        raise UsageError(f"{path.name}: {error}; expected numbers; write it again with `medseg evaluate`") from error


def _figure(text: str) -> float:
    value = float(text)
    if not abs(value) < _LARGEST:
        raise ValueError(f"found the figure {text[:20]}")
    return value


def read_summary(folder: Path) -> dict[str, Any]:
    """The object in an evaluation's ``metrics.json``; empty if there is none.

    Raises ``UsageError`` if it is damaged.
    """
    path = folder / METRICS_JSON
    if not path.is_file():
        return {}
    return dict(read_json(path, _SUMMARY, "run `medseg evaluate` again"))


def run_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the run that made the predictions calls a case, by the evaluation's case id, where the two differ."""
    listed = summary.get("cases") or ()
    return {case["case_id"]: case["prediction_case_id"] for case in listed if case.get("prediction_case_id")}


def measured_dice(folder: Path) -> dict[str, float]:
    """Dice of the worst structure by the run's case id, if an evaluation was written into ``folder``; else empty.

    Raises ``UsageError`` if the evaluation's files are damaged.
    """
    if not (folder / METRICS_CSV).is_file():
        return {}
    names = run_names(read_summary(folder))
    worst: dict[str, float] = {}
    for row in read_csv(folder / METRICS_CSV):
        dice = row.values["dice"]
        if dice is not None:
            case_id = names.get(row.case_id, row.case_id)
            worst[case_id] = min(dice, worst.get(case_id, dice))
    return worst
