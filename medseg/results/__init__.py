"""What a run says of its cases: its records, its files, and the one order in which cases are looked at."""

from medseg.results.case_result import CaseResult, StructureVolume
from medseg.results.run_report import RunReport
from medseg.results.worklist import MISS_BELOW, keep_worklist, worst_first, write_worklist

__all__ = [
    "MISS_BELOW",
    "CaseResult",
    "RunReport",
    "StructureVolume",
    "keep_worklist",
    "worst_first",
    "write_worklist",
]
