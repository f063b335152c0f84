"""Datalists: who is in a study, how it is split, and whether it is fit to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.manifests.audit_checks import audit
    from medseg.manifests.audit_findings import AuditFinding, AuditReport
    from medseg.manifests.items import Item, patient_of
    from medseg.manifests.layouts import create
    from medseg.manifests.manifest import Manifest, Part

__all__ = ["AuditFinding", "AuditReport", "Item", "Manifest", "Part", "audit", "create", "patient_of"]

__getattr__ = lazily(
    __name__,
    {
        "audit_checks": "audit",
        "audit_findings": "AuditFinding AuditReport",
        "items": "Item patient_of",
        "layouts": "create",
        "manifest": "Manifest Part",
    },
)
