"""The files a case leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.inference.cases import Case
from medseg.inference.judging import Assessment
from medseg.ingest import save_nifti
from medseg.ingest.own import mark

__all__ = ["KINDS", "Labelled", "check_source", "unavailable", "write_outputs"]

KINDS = {
    "nifti": "seg.nii.gz",
    "doubt": "doubt.nii.gz",
    "seg": "seg.dcm",
    "sr": "sr.dcm",
    "rtstruct": "rtstruct.dcm",
    "sc": "sc.dcm",
}
"""Kinds of output and the ends of their file names; a report refers to the segmentation, so that comes first."""

_ANY_SOURCE = ("nifti", "doubt")


@dataclass(frozen=True)
class Labelled:
    """What is known of a case when its outputs are written.

    Parameters
    ----------
    label_map
        On the source grid.
    geometry
        That grid.
    assessment
        What trust says; None without a judge.
    """

    label_map: NDArray[np.integer]
    geometry: Geometry
    assessment: Assessment | None = None


def unavailable(case: Case, kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds that cannot be written for a case: DICOM objects refer to the DICOM images they were made from."""
    if case.channels[0].kind == "dicom":
        return ()
    return tuple(kind for kind in kinds if kind not in _ANY_SOURCE)


def check_source(case: Case, kinds: Sequence[str]) -> None:
    """Refuse a case of which nothing that was asked for could be written.

    Raises
    ------
    Refusal
        ``no-dicom-source``.
    """
    if len(unavailable(case, kinds)) == len(kinds):
        raise missing_source(case, kinds)


def missing_source(case: Case, kinds: Sequence[str]) -> Refusal:
    """The refusal of some kinds of output of a case."""
    return Refusal(
        "no-dicom-source",
        f"{', '.join(kinds)} need DICOM images to refer to, {case.source} is {case.channels[0].kind}; give the DICOM"
        " series, or write nifti",
    )


def write_outputs(
    labelled: Labelled, case: Case, bundle: Bundle, kinds: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """Write what can be written of a case, each file whole or not at all, and return the file names.

    There is no ``doubt`` of a case that was not judged.
    """
    names = []
    skipped = unavailable(case, kinds)
    for kind in (kind for kind in KINDS if kind in kinds and kind not in skipped):
        path = folder / f"{case.case_id}_{KINDS[kind]}"
        if kind == "nifti":
            save_nifti(labelled.label_map, labelled.geometry.affine, path, description=mark("label-map"))
        elif kind == "doubt":
            if labelled.assessment is None or labelled.assessment.doubt is None:
                path.unlink(missing_ok=True)  # an older run's map would not belong to this result
                continue
            save_nifti(labelled.assessment.doubt, labelled.geometry.affine, path, description=mark("doubt-map"))
        else:
            _write_dicom(kind, labelled, case, bundle, path)
        names.append(path.name)
    return tuple(names)


def _write_dicom(kind: str, labelled: Labelled, case: Case, bundle: Bundle, path: Path) -> None:
    from medseg import outputs

    known = labelled.assessment
    options = None
    if known is not None:
        doubt = None if known.doubt is None or kind != "sc" else known.doubt.astype(np.float32)
        options = outputs.WriteOptions(trust=known.trust, doubt=doubt)
    outputs.write(kind, labelled.label_map, labelled.geometry, case.channels[0], bundle, path, options=options)
