"""Check a manifest and its data before training: grids, labels, intensities, duplicates, leakage, checksums."""

from __future__ import annotations

from collections.abc import Callable

from medseg.manifests.audit.cases import check_cases
from medseg.manifests.audit.facts import gather
from medseg.manifests.audit.findings import CODES, AuditReport, Finding, Severity
from medseg.manifests.audit.leakage import check_declarations, check_leakage
from medseg.manifests.audit.whole import check_whole
from medseg.manifests.manifest import Manifest
from medseg.manifests.split import patient_of

__all__ = ["CODES", "AuditReport", "Finding", "Severity", "audit"]

_ORDER = {"error": 0, "warning": 1, "note": 2}


def audit(
    manifest: Manifest, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> AuditReport:
    """Read every case of a manifest once and report what is wrong with it.

    Parameters
    ----------
    manifest
        The datalist to check; its files are read, nothing is written.
    workers
        Number of processes, each of which holds one case in memory; by default up to four.
    progress
        Called with the number of finished cases and of all cases.

    Returns
    -------
    AuditReport
        All findings, errors first; ``blocks_training`` tells whether one of them is an error.
    """
    facts = gather(manifest, workers=workers, progress=progress)
    findings = [
        *check_declarations(manifest),
        *check_cases(facts, manifest.labels),
        *check_whole(facts, manifest.labels),
        *check_leakage(facts),
    ]
    findings.sort(key=lambda finding: (_ORDER[finding.severity], finding.code, finding.cases))
    return AuditReport(len(facts), len({patient_of(case.item) for case in facts}), findings)
