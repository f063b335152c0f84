"""Inference: one volume through a bundle, and whole folders of them."""

from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.run.batch import run_batch
from medseg.inference.run.options import RunOptions
from medseg.inference.run.results import CaseResult, RunReport

__all__ = ["CaseResult", "Options", "Prediction", "Predictor", "RunOptions", "RunReport", "run_batch"]

Options = RunOptions  # the name in the documented interface
