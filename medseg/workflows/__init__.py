"""Walks over several rooms."""

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.workflows.cross_validation import CrossValidation, cross_validate

__all__ = ["CrossValidation", "cross_validate"]

__getattr__ = lazily(__name__, {"cross_validation": "CrossValidation cross_validate"})
