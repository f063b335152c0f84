"""What an audit can find: one table of codes, how grave each is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medseg.errors import REASON_CODES

Severity = Literal["error", "warning", "note"]

ERRORS: Mapping[str, str] = {
    "missing-file": "restore the file, or give the right --dataset-dir",
    "pointer-file": "fetch the content: `git annex get FILE`, `datalad get FILE` or `git lfs pull`",
    "checksum-mismatch": "the file has changed since the manifest was made: restore it or make a new manifest",
    "geometry-mismatch": "resample the label onto its image's grid, or restore the right label",
    "channel-mismatch": "give every case the same number of channels, of one field of view",
    "unexpected-labels": (
        "correct the label map, declare the value under `labels`, or map it: `manifest create --map VALUE=LABEL`"
    ),
    "fractional-labels": "the label map was interpolated: make it again with nearest neighbour",
    "unlisted-structure": (
        "list under `annotated` all structures that were looked for, by their names in `labels`, or correct the label"
    ),
    "label-gaps": "renumber: `medseg manifest create --images FILE --map VALUE=LABEL,... -o FILE`",
    "no-label": "add the label, or move the case to `test`",
    "nothing-labelled": "no label map holds anything but background: check the label folder",
    "constant-image": "the image holds one value only: restore it or drop the case",
    "duplicate-content": "keep one of them, or give them one patient_id and split again",
    "patient-in-two-folds": "split again: `medseg manifest split`",
    "patient-in-test": "split again: `medseg manifest split`",
    "no-items": "the manifest lists no training case",
}
WARNINGS: Mapping[str, str] = {
    "suspected-same-scan": "the voxel values of these cases have one unusual step in common, as crops of one scan do: "
    "if they are of one patient, give them one patient_id and split again",
    "channels-on-different-grids": (
        "right for a bundle that resamples its channels, as `medseg bundle new` plans it; else resample them first"
    ),
    "duplicate-label": "two cases have the very same label map: check that neither is a copy of the other",
    "empty-label": "right if the structure is absent; otherwise complete the label",
    "label-never-present": "drop it from `labels`, or check that its cases are listed",
    "no-background": (
        "right if every voxel belongs to a structure; else the values are shifted: `manifest create --map 1=0,2=1,...`"
    ),
    "label-in-one-case": "add cases that have the structure, or leave it out: map it to another label",
    "mirrored-labels": "look at the case: left and right values swapped, or image or label mirrored",
    "label-off-edges": "look at the case: a label of another image, shifted, mirrored or turned",
    "raters-apart": (
        'a list of labels is one for each rater; files for each structure are an object: {"liver": FILE, ...}'
    ),
    "label-at-border": "right if the field of view ends there: the structure is cut, its volume too small",
    "tiny-islands": "look at them: erase what is a slip of the pen, below 0.1 ml and 5 % of the structure",
    "tiny-holes": "look at them: fill what is a slip of the pen, background below 0.1 ml inside",
    "fold-without-class": "use fewer folds, split again, or add cases that have the structure",
    "no-declared-labels": 'declare what the values mean: "labels": {"0": "background", "1": ...}',
    "label-volume-outlier": "look at the case: a label much smaller or larger than the others",
    "intensity-outlier": "look at the case: intensities far from the others' (units, rescale, damage)",
    "spacing-outlier": "look at the case: its voxels are of another size than the others'",
    "partly-split": "some training cases have no fold: split again",
    "no-licence": "name the licence or the approval under which the data may be used: `licence`",
}
NOTES: Mapping[str, str] = {
    "ignored-voxels": "complete these label maps if you can; a bundle that does not know them refuses them",
    "partly-annotated": "such cases train and score what they list: `medseg bundle new` plans for it",
    "label-often-at-border": "usual for these images: volumes are of the part inside the field of view",
    "no-folds": "split before training: `medseg manifest split FILE --folds 5 --seed 0`",
    "no-patient-ids": "each case is taken to be a patient of its own; give patient_id if some are not",
    "no-checksums": "make the manifest with checksums, so that a changed file is noticed",
    "label-reading": "right if it is what was meant; else correct the object, or `label_reading` of the datalist",
    "rounded-labels": "the values are whole numbers but for rounding: no action needed",
    "rounding-noise": "image and label differ by less than the tolerance: no action needed",
    "no-common-scale": "normalise each image by its own intensities",
}
"""Remedy by code of what blocks training, of what deserves a look, and of what is for information; reason codes of
refused volumes are errors besides."""

_REMEDIES = {**ERRORS, **WARNINGS, **NOTES}


@dataclass(frozen=True)
class AuditFinding:
    """One thing that is wrong, or worth knowing.

    ``code`` is a key of :data:`ERRORS`, :data:`WARNINGS` or :data:`NOTES`, or the reason code of a refused volume;
    without ``cases`` it is about the whole manifest.
    """

    code: str
    message: str
    cases: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """``error`` blocks training, ``warning`` deserves a look, ``note`` is for information."""
        return "note" if self.code in NOTES else "warning" if self.code in WARNINGS else "error"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return _REMEDIES.get(self.code) or "repair or drop the case" * (self.code in REASON_CODES)

    def as_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        known = {"code": self.code, "severity": self.severity, "cases": list(self.cases)}
        return {**known, "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True)
class AuditReport:
    """All findings, the gravest first; how many cases were looked at, and of how many patients, as far as is told."""

    n_cases: int
    n_patients: int
    findings: Sequence[AuditFinding]

    @property
    def blocks_training(self) -> bool:
        """Whether something must be repaired before training makes sense."""
        return any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "cases": self.n_cases,
            "patients": self.n_patients,
            "blocks_training": self.blocks_training,
            "findings": [finding.as_json() for finding in self.findings],
        }
