"""Datalists: who is in a study, how it is split, and whether it is fit to train on."""

from medseg.manifests.audit import audit
from medseg.manifests.audit_findings import AuditFinding, AuditReport
from medseg.manifests.create import create
from medseg.manifests.manifest import Item, Manifest
from medseg.manifests.split import Part, patient_of, split

__all__ = ["AuditFinding", "AuditReport", "Item", "Manifest", "Part", "audit", "create", "patient_of", "split"]
