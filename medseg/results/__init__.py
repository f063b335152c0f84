"""What a run says of its cases: its files read again, and the one order in which cases are looked at."""

from medseg.results.run_report import FLAG, JOURNAL_NAME, NUMBER, TEXT, RunCase, RunFolder, Spec, misfit, read_run
from medseg.results.worklist import MISS_BELOW, worst_first

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
