"""What a run says of its cases: its files read again, and the one order in which cases are looked at."""

from medseg.results.order import MISS_BELOW, worst_first
from medseg.results.run_folder import JOURNAL_NAME, RunCase, RunFolder, read_run
from medseg.results.shape import FLAG, NUMBER, TEXT, Spec, misfit

__all__ = [
    "FLAG",
    "JOURNAL_NAME",
    "MISS_BELOW",
    "NUMBER",
    "TEXT",
    "RunCase",
    "RunFolder",
    "Spec",
    "misfit",
    "read_run",
    "worst_first",
]
