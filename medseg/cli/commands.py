"""Imports every command file, which registers it; the order is the order of ``medseg --help``."""

from medseg.cli import bundle, crossval, demo, doctor, evaluate, index, infer, manifest, pacs, report, train, trust

__all__ = [
    "bundle",
    "crossval",
    "demo",
    "doctor",
    "evaluate",
    "index",
    "infer",
    "manifest",
    "pacs",
    "report",
    "train",
    "trust",
]
