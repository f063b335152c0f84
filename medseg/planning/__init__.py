"""A new bundle planned from data: what the data are like, a plan with its reasons, a complete bundle to train."""

from medseg.planning.cleaning import Cleaning, set_cleaning
from medseg.planning.create import create_bundle
from medseg.planning.plan import Budget, Plan, make_plan

__all__ = ["Budget", "Cleaning", "Plan", "create_bundle", "make_plan", "set_cleaning"]
