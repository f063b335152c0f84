"""Imports every command file, which registers it; the order is the order of ``medseg --help``."""

from medseg.cli import doctor

__all__ = ["doctor"]
