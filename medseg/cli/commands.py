"""Imports every command file, which registers it; the order is the order of ``medseg --help``."""

from medseg.cli import bundle, demo, doctor, evaluate, index, infer, manifest, pacs, report, train, trust

__all__ = ["bundle", "demo", "doctor", "evaluate", "index", "infer", "manifest", "pacs", "report", "train", "trust"]
