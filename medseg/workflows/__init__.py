"""Walks over several rooms."""

from medseg.workflows.cross_validation import CrossValidation, cross_validate

__all__ = ["CrossValidation", "cross_validate"]
