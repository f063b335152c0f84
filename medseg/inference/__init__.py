"""Inference: one volume through a bundle, and whole folders of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.inference.predictor import Prediction, Predictor
    from medseg.inference.run.batch import run_batch
    from medseg.inference.run.options import Options, RunOptions
    from medseg.results.case_result import CaseResult
    from medseg.results.run_report import RunReport

__all__ = ["CaseResult", "Options", "Prediction", "Predictor", "RunOptions", "RunReport", "run_batch"]

__getattr__ = lazily(
    __name__,
    {
        "predictor": "Prediction Predictor",
        "run.batch": "run_batch",
        "run.options": "Options RunOptions",
        "medseg.results.case_result": "CaseResult",
        "medseg.results.run_report": "RunReport",
    },
)
