"""Inference: one volume through a bundle, and whole folders of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.inference.predictor import Prediction, Predictor
    from medseg.inference.run.batch import run_batch
    from medseg.inference.run.options import RunOptions
    from medseg.inference.run.options import RunOptions as Options
    from medseg.results.case_result import CaseResult
    from medseg.results.run_report import RunReport

__all__ = ["CaseResult", "Options", "Prediction", "Predictor", "RunOptions", "RunReport", "run_batch"]

_HOMES = {
    "CaseResult": "medseg.results.case_result",
    "Options": "medseg.inference.run.options",
    "Prediction": "medseg.inference.predictor",
    "Predictor": "medseg.inference.predictor",
    "RunOptions": "medseg.inference.run.options",
    "RunReport": "medseg.results.run_report",
    "run_batch": "medseg.inference.run.batch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), "RunOptions" if name == "Options" else name)
