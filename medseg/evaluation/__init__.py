"""Evaluation against references: exact metrics in mm, statistics, tables, and handlers for MONAI's workflows.

Neither torch nor MONAI is imported unless a handler is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.evaluation.case import StructureResult, evaluate_case
    from medseg.evaluation.definitions import METRICS, Definitions
    from medseg.evaluation.folders import EvaluationResult, Options, evaluate_folders
    from medseg.evaluation.statistics import Bootstrap, compare, subgroups
    from medseg.evaluation.tables import read_csv

_HOMES = {
    "METRICS": "definitions",
    "Bootstrap": "statistics",
    "Definitions": "definitions",
    "EvaluationResult": "folders",
    "Options": "folders",
    "StructureResult": "case",
    "compare": "statistics",
    "evaluate_case": "case",
    "evaluate_folders": "folders",
    "read_csv": "tables",
    "subgroups": "statistics",
}

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
