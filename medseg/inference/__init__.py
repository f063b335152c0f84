"""Inference: one volume through a bundle, and whole folders of them."""

from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.run.batch import run_batch
from medseg.inference.run.options import Options
from medseg.inference.run.results import CaseResult, RunReport

__all__ = ["CaseResult", "Options", "Prediction", "Predictor", "RunReport", "run_batch"]
