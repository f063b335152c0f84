"""What an audit can find: one table of codes, how grave each is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medseg.errors import REASON_CODES

Severity = Literal["error", "warning", "note"]

CODES: Mapping[str, tuple[Severity, str]] = {
    "missing-file": ("error", "restore the file, or give the right --dataset-dir"),
    "pointer-file": ("error", "fetch the content: `git annex get FILE`, `datalad get FILE` or `git lfs pull`"),
    "checksum-mismatch": (
        "error",
        "the file has changed since the manifest was made: restore it or make a new manifest",
    ),
    "geometry-mismatch": ("error", "resample the label onto its image's grid, or restore the right label"),
    "channel-mismatch": ("error", "give every case the same number of channels, of one field of view"),
    "unexpected-labels": (
        "error",
        "correct the label map, declare the value under `labels`, or map it: `manifest create --map VALUE=LABEL`",
    ),
    "fractional-labels": ("error", "the label map was interpolated: make it again with nearest neighbour"),
    "unlisted-structure": (
        "error",
        "list under `annotated` all structures that were looked for, by their names in `labels`, or correct the label",
    ),
    "label-gaps": ("error", "renumber: `medseg manifest create --images FILE --map VALUE=LABEL,... -o FILE`"),
    "no-label": ("error", "add the label, or move the case to `test`"),
    "nothing-labelled": ("error", "no label map holds anything but background: check the label folder"),
    "constant-image": ("error", "the image holds one value only: restore it or drop the case"),
    "duplicate-content": ("error", "keep one of them, or give them one patient_id and split again"),
    "patient-in-two-folds": ("error", "split again: `medseg manifest split`"),
    "patient-in-test": ("error", "split again: `medseg manifest split`"),
    "no-items": ("error", "the manifest lists no training case"),
    "suspected-same-scan": (
        "warning",
        "the voxel values of these cases have one unusual step in common, as crops of one scan do: if they are of one "
        "patient, give them one patient_id and split again",
    ),
    "channels-on-different-grids": (
        "warning",
        "right for a bundle that resamples its channels, as `medseg bundle new` plans it; else resample them first",
    ),
    "duplicate-label": ("warning", "two cases have the very same label map: check that neither is a copy of the other"),
    "empty-label": ("warning", "right if the structure is absent; otherwise complete the label"),
    "label-never-present": ("warning", "drop it from `labels`, or check that its cases are listed"),
    "no-background": (
        "warning",
        "right if every voxel belongs to a structure; else the values are shifted: `manifest create --map 1=0,2=1,...`",
    ),
    "label-in-one-case": ("warning", "add cases that have the structure, or leave it out: map it to another label"),
    "mirrored-labels": ("warning", "look at the case: left and right values swapped, or image or label mirrored"),
    "label-off-edges": ("warning", "look at the case: a label of another image, shifted, mirrored or turned"),
    "raters-apart": (
        "warning",
        'a list of labels is one for each rater; files for each structure are an object: {"liver": FILE, ...}',
    ),
    "label-at-border": ("warning", "right if the field of view ends there: the structure is cut, its volume too small"),
    "tiny-islands": ("warning", "look at them: erase what is a slip of the pen, below 0.1 ml and 5 % of the structure"),
    "tiny-holes": ("warning", "look at them: fill what is a slip of the pen, background below 0.1 ml inside"),
    "fold-without-class": ("warning", "use fewer folds, split again, or add cases that have the structure"),
    "no-declared-labels": ("warning", 'declare what the values mean: "labels": {"0": "background", "1": ...}'),
    "label-volume-outlier": ("warning", "look at the case: a label much smaller or larger than the others"),
    "intensity-outlier": ("warning", "look at the case: intensities far from the others' (units, rescale, damage)"),
    "spacing-outlier": ("warning", "look at the case: its voxels are of another size than the others'"),
    "partly-split": ("warning", "some training cases have no fold: split again"),
    "no-licence": ("warning", "name the licence or the approval under which the data may be used: `licence`"),
    "ignored-voxels": ("note", "complete these label maps if you can; a bundle that does not know them refuses them"),
    "partly-annotated": ("note", "such cases train and score what they list: `medseg bundle new` plans for it"),
    "label-often-at-border": ("note", "usual for these images: volumes are of the part inside the field of view"),
    "no-folds": ("note", "split before training: `medseg manifest split FILE --folds 5 --seed 0`"),
    "no-patient-ids": ("note", "each case is taken to be a patient of its own; give patient_id if some are not"),
    "no-checksums": ("note", "make the manifest with checksums, so that a changed file is noticed"),
    "label-reading": (
        "note",
        "right if it is what was meant; else correct the object, or `label_reading` of the datalist",
    ),
    "rounded-labels": ("note", "the values are whole numbers but for rounding: no action needed"),
    "rounding-noise": ("note", "image and label differ by less than the tolerance: no action needed"),
    "no-common-scale": ("note", "normalise each image by its own intensities"),
}
"""Severity and remedy by code; reason codes of refused volumes are errors besides."""


@dataclass(frozen=True)
class AuditFinding:
    """One thing that is wrong, or worth knowing.

    ``code`` is a key of :data:`CODES`, or the reason code of a refused volume; without ``cases`` it is about the whole
    manifest.
    """

    code: str
    message: str
    cases: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """``error`` blocks training, ``warning`` deserves a look, ``note`` is for information."""
        return CODES[self.code][0] if self.code in CODES else "error"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return CODES[self.code][1] if self.code in CODES else "repair or drop the case" * (self.code in REASON_CODES)

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
