"""The report: one self-contained HTML page about an ``infer``, ``evaluate`` or ``train`` folder."""

from medseg.report.write import REPORT_NAME, ViewerChoice, write_report

__all__ = ["REPORT_NAME", "ViewerChoice", "write_report"]
