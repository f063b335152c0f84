"""Evaluation against references: exact metrics in mm, statistics, tables, and handlers for MONAI's workflows.

Neither torch nor MONAI is imported unless a handler is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.evaluation.case import StructureResult, evaluate_case
    from medseg.evaluation.definitions import METRICS, Definitions
    from medseg.evaluation.folders import EvaluationResult, Options, evaluate_folders
    from medseg.evaluation.statistics import Bootstrap, compare, subgroups
    from medseg.evaluation.tables import read_csv


__all__ = [
    "METRICS",
    "Bootstrap",
    "Definitions",
    "EvaluationResult",
    "Options",
    "StructureResult",
    "compare",
    "evaluate_case",
    "evaluate_folders",
    "read_csv",
    "subgroups",
]


__getattr__ = lazily(
    __name__,
    {
        "case": "StructureResult evaluate_case",
        "definitions": "Definitions METRICS",
        "folders": "EvaluationResult Options evaluate_folders",
        "statistics": "Bootstrap compare subgroups",
        "tables": "read_csv",
    },
)
