"""Inference: one volume through a bundle, and whole folders of them."""

from medseg.inference.options import Options
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.results import CaseResult, RunReport
from medseg.inference.runner import run_batch

__all__ = ["CaseResult", "Options", "Prediction", "Predictor", "RunReport", "run_batch"]
