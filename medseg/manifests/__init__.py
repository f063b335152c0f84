"""Datalists: who is in a study, how it is split, and whether it is fit to train on."""

from medseg.manifests.audit import audit
from medseg.manifests.audit_findings import AuditFinding, AuditReport
from medseg.manifests.create import create
from medseg.manifests.items import Item, patient_of
from medseg.manifests.manifest import Manifest, Part

__all__ = ["AuditFinding", "AuditReport", "Item", "Manifest", "Part", "audit", "create", "patient_of"]
