"""``metrics.csv`` and ``metrics.json``: what an evaluation leaves behind, and how to read it again."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.errors import UsageError
from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_COLUMNS, CSV_METRICS, EMPTY_POLICY, Definitions, describe
from medseg.evaluation.pairing import Pair
from medseg.evaluation.statistics import Bootstrap
from medseg.files import write_text

__all__ = ["Evaluated", "header", "lists_of_cases", "read_csv", "write_csv"]

_LIBRARIES = ("numpy", "scipy", "edt", "connected-components-3d", "nibabel")


@dataclass(frozen=True)
class Evaluated:
    """One set of predictions, scored: rows, case ids without a partner by side, refused cases, all pairs."""

    source: Path
    results: list[StructureResult]
    unpaired: dict[str, list[str]]
    refused: list[dict[str, str]]
    pairs: list[Pair]

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
        "medseg": __version__,
        "predictions": str(evaluated.source),
        "references": str(references),
        "n_cases": len(evaluated.scored),
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
            "medseg": __version__,
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
        },
    }


def lists_of_cases(evaluated: Evaluated) -> dict[str, Any]:
    """The long part of ``metrics.json``: cases without a partner, refused cases, and where every case's files lie."""
    return {
        "unpaired": evaluated.unpaired,
        "refused": evaluated.refused,
        "cases": [
            {"case_id": pair.case_id, "prediction": str(pair.prediction), "reference": str(pair.reference)}
            for pair in evaluated.pairs
        ],
    }


def write_csv(path: Path, results: Iterable[StructureResult], more_metrics: Sequence[str] = ()) -> None:
    """Write one row per case and structure: the documented columns, then ``more_metrics``.

    Numbers have full precision; a value that does not exist is an empty field; ``missed`` and ``invented`` are
    0 or 1.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *more_metrics])
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
        If a documented column is missing.
    """
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        missing = [column for column in CSV_COLUMNS if column not in columns]
        if missing:
            raise UsageError(f"{path} lacks the columns {', '.join(missing)}; give a metrics.csv that medseg wrote")
        metrics = [column for column in columns if column not in ("case_id", "label", "name", "missed", "invented")]
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
