"""``metrics.csv`` and ``metrics.json``: what an evaluation leaves behind, and how to read it again."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg._version import medseg_version
from medseg.errors import UsageError
from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_COLUMNS, CSV_METRICS, EMPTY_POLICY, Definitions, describe
from medseg.evaluation.pairing import Pair
from medseg.evaluation.statistics import Bootstrap
from medseg.files import write_text
from medseg.results import NUMBER, TEXT, Spec, misfit

METRICS_CSV, METRICS_JSON = "metrics.csv", "metrics.json"

_TRAINED_ON = "trained_on"
_LIBRARIES = ("numpy", "scipy", "edt", "connected-components-3d", "nibabel")


_FIGURES: Spec = {"mean": NUMBER, "std": NUMBER, "median": NUMBER, "ci95": [NUMBER]}
_SUMMARY: Spec = {
    "predictions": TEXT,
    "references": TEXT,
    "n_unpaired": NUMBER,
    "warnings": [TEXT],
    "trained_on": {"n!": NUMBER, "of": NUMBER, "case_ids": [TEXT]},
    "definitions": {"tolerance_mm": NUMBER, "percentile_rule": TEXT, "surface": TEXT},
    "structures": {
        "*": {"label": NUMBER, "n": NUMBER, "n_missed": NUMBER, "n_invented": NUMBER, "metrics": {"*": _FIGURES}}
    },
    "cases": [{"case_id!": TEXT, "prediction": TEXT, "reference": TEXT, "prediction_case_id": TEXT}],
}
"""``metrics.json``, as far as it is read again."""


@dataclass(frozen=True)
class Evaluated:
    """One set of predictions, scored.

    Rows, case ids without a partner by side, refused cases, all pairs, what was done to a case before it was scored.
    """

    source: Path
    results: list[StructureResult]
    unpaired: dict[str, list[str]]
    refused: list[dict[str, str]]
    pairs: list[Pair]
    notes: list[dict[str, str]] = field(default_factory=list)

    @property
    def n_unpaired(self) -> int:
        """Cases of either side without a partner."""
        return sum(len(cases) for cases in self.unpaired.values())

    @property
    def scored(self) -> list[Pair]:
        """The pairs that could be scored."""
        refused = {case["case_id"] for case in self.refused}
        return [pair for pair in self.pairs if pair.case_id not in refused]


def header(
    evaluated: Evaluated, references: Path, tolerance_mm: float, definitions: Definitions, bootstrap: Bootstrap
) -> dict[str, Any]:
    """What stands in ``metrics.json`` before the tables: what was compared, how, by which versions."""
    rows = evaluated.results
    return {
        "medseg": medseg_version(),
        "predictions": str(evaluated.source),
        "references": str(references),
        "n_cases": len(evaluated.scored),
        "n_scored": sum(not row.absent for row in rows),
        "n_missed": sum(row.missed for row in rows),
        "n_invented": sum(row.invented for row in rows),
        "n_unpaired": evaluated.n_unpaired,
        "n_refused": len(evaluated.refused),
        "empty_masks": EMPTY_POLICY,
        "definitions": describe(definitions, tolerance_mm),
        "statistics": {
            "std": "of a sample (n - 1)",
            "ci95": "percentile bootstrap of the mean, whole patients drawn with replacement",
            "resamples": bootstrap.resamples,
            "confidence": bootstrap.confidence,
            "seed": bootstrap.seed,
        },
        "versions": {
            "medseg": medseg_version(),
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
        },
    }


def lists_of_cases(evaluated: Evaluated, left_out: Mapping[str, str]) -> dict[str, Any]:
    """The long part of ``metrics.json``: cases without a partner, refused cases, notes, where every case's files lie.

    ``left_out`` are files of the predictions' folder that are no label maps, and what they are.
    """
    return {
        "unpaired": evaluated.unpaired,
        "refused": evaluated.refused,
        "notes": evaluated.notes,
        "left_out": dict(left_out),
        "cases": [_files(pair) for pair in evaluated.pairs],
    }


def _files(pair: Pair) -> dict[str, str]:
    """The files of a case; where its prediction's side calls it otherwise, that name, by which its run knows it."""
    files = {"case_id": pair.case_id, "prediction": str(pair.prediction), "reference": str(pair.reference)}
    return {**files, "prediction_case_id": pair.prediction_id} if pair.renamed else files


def write_csv(
    path: Path,
    results: Iterable[StructureResult],
    more_metrics: Sequence[str] = (),
    trained_on: Mapping[str, bool | None] | None = None,
) -> None:
    """Write one row per case and structure: the documented columns, then ``more_metrics``, then ``trained_on``.

    Numbers have full precision; a value that does not exist, or is not known, is an empty field; ``missed``,
    ``invented`` and ``trained_on`` are 0 or 1. The column ``trained_on`` stands where that is known of some case.
    """
    known = {case: str(int(learnt)) for case, learnt in (trained_on or {}).items() if learnt is not None}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *more_metrics, *([_TRAINED_ON] if known else [])])
    for row in results:
        writer.writerow(
            [
                row.case_id,
                row.label,
                row.name,
                *(_cell(row.values.get(metric)) for metric in CSV_METRICS),
                int(row.missed),
                int(row.invented),
                *(_cell(row.values.get(metric)) for metric in more_metrics),
                *([known.get(row.case_id, "")] if known else []),
            ]
        )
    write_text(path, text.getvalue())


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def read_csv(path: Path) -> list[StructureResult]:
    """Read a ``metrics.csv`` back, with all its metric columns.

    Raises
    ------
    UsageError
        If a documented column is missing, or a number is none.
    """
    try:
        return _read_rows(path)
    except (ValueError, TypeError, csv.Error) as error:
        raise UsageError(
            f"{path.name}: {error}; expected numbers as `medseg evaluate` writes them, so run it again"
        ) from error


def _read_rows(path: Path) -> list[StructureResult]:
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        missing = [column for column in CSV_COLUMNS if column not in columns]
        if missing:
            raise UsageError(f"{path} lacks the columns {', '.join(missing)}; give a metrics.csv that medseg wrote")
        others = ("case_id", "label", "name", "missed", "invented", _TRAINED_ON)
        metrics = [column for column in columns if column not in others]
        return [
            StructureResult(
                int(row["label"]),
                row["name"],
                {metric: float(row[metric]) if row[metric] else None for metric in metrics},
                missed=row["missed"] == "1",
                invented=row["invented"] == "1",
                case_id=row["case_id"],
            )
            for row in reader
        ]


def read_summary(folder: Path) -> dict[str, Any]:
    """The object in an evaluation's ``metrics.json``; empty if there is none.

    Raises
    ------
    UsageError
        If it is damaged.
    """
    path = folder / METRICS_JSON
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} cannot be read as JSON ({error}); run `medseg evaluate` again") from error
    if not isinstance(value, dict):
        raise UsageError(
            f"{path.name} holds a {type(value).__name__}, expected a JSON object; run `medseg evaluate` again"
        )
    if wrong := misfit(value, _SUMMARY):
        raise UsageError(f"{path.name} is not as `medseg evaluate` writes it: {wrong}; run it again")
    return value


def run_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the run that made the predictions calls a case, by the evaluation's case id, where the two differ."""
    listed = summary.get("cases") or ()
    return {case["case_id"]: case["prediction_case_id"] for case in listed if case.get("prediction_case_id")}


def measured_dice(folder: Path) -> dict[str, float]:
    """Dice of the worst structure by the run's case id, if an evaluation was written into ``folder``; else empty.

    Raises
    ------
    UsageError
        If the evaluation's files are damaged.
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
