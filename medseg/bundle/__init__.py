"""A bundle as data: open, parse, audit without executing, load weights safely."""

from medseg.bundle.audit import audit, require_trusted
from medseg.bundle.bundle import Bundle, Permission
from medseg.bundle.findings import Finding
from medseg.bundle.training_run import TrainingData, trained_on

__all__ = ["Bundle", "Finding", "Permission", "TrainingData", "audit", "require_trusted", "trained_on"]
