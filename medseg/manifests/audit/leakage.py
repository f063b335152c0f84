"""What would make a result look better than it is: one patient on both sides of a split; and what is not declared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from medseg.manifests.audit.facts import CaseFacts
from medseg.manifests.audit.findings import Finding
from medseg.manifests.manifest import Manifest
from medseg.manifests.split import patient_of

__all__ = ["check_declarations", "check_leakage"]

_MOST_OF_ONE_SCAN = 4
"""A step that more cases share is a convention of the dataset (a normalisation), not the mark of one scan."""


def check_leakage(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """One patient in two folds, or in training and test; and pairs that look like one scan under two names."""
    by_patient: dict[str, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        by_patient[patient_of(case.item)].append(case)
    for cases in by_patient.values():
        names = tuple(case.case for case in cases)
        parts = {_part(case) for case in cases}
        if "test" in parts and len(parts) > 1:
            yield Finding("patient-in-test", f"one patient is in {_list(parts)}", names)
        elif len(parts - {"training"}) > 1:
            yield Finding("patient-in-two-folds", f"one patient is in {_list(parts)}", names)
    yield from _suspected_same_scan(facts)


def _suspected_same_scan(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    by_step: dict[float, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        for step in {image.step for image in case.images} - {0.0}:
            by_step[step].append(case)
    for step, cases in by_step.items():
        patients = {patient_of(case.item) for case in cases}
        parts = {_part(case) for case in cases}
        if len(patients) > 1 and len(parts) > 1 and len(cases) <= _MOST_OF_ONE_SCAN:
            message = f"values in steps of {step:g} in these cases only, which are in {_list(parts)}"
            yield Finding("suspected-same-scan", message, tuple(case.case for case in cases))


def check_declarations(manifest: Manifest) -> Iterator[Finding]:
    """Licence, patients, folds and checksums: what a reader needs to trust a split."""
    items = [item for _, _, item in manifest.items()]
    training = manifest.training
    if not training:
        yield Finding("no-items", "found no item under `training`")
    if not manifest.licence:
        yield Finding("no-licence", "the manifest names no licence")
    if items and not any(item.get("patient_id") for item in items):
        yield Finding("no-patient-ids", "no item names its patient")
    split = [item for item in training if "fold" in item]
    if training and not split and "validation" not in manifest.content:
        yield Finding("no-folds", "no training item has a fold")
    elif split and len(split) < len(training):
        yield Finding("partly-split", f"{len(training) - len(split)} of {len(training)} training items have no fold")
    without = sum("sha256" not in item for item in items)
    if without:
        yield Finding("no-checksums", f"{without} of {len(items)} items have no SHA-256 sums")


def _part(case: CaseFacts) -> str:
    if case.section in ("test", "testing"):
        return "test"
    fold = case.item.get("fold")
    return case.section if fold is None else f"fold {fold}"


def _list(parts: set[str]) -> str:
    return " and ".join(sorted(parts))
