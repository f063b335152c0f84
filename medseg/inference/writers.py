"""The files a case leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.inference.cases import Case
from medseg.ingest import save_nifti

__all__ = ["KINDS", "check_source", "unavailable", "write_outputs"]

KINDS = {"nifti": "seg.nii.gz", "seg": "seg.dcm", "sr": "sr.dcm", "rtstruct": "rtstruct.dcm", "sc": "sc.dcm"}
"""Kinds of output and the ends of their file names; a report refers to the segmentation, so that comes first."""


def unavailable(case: Case, kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds that cannot be written for a case: DICOM objects refer to the DICOM images they were made from."""
    if case.channels[0].kind == "dicom":
        return ()
    return tuple(kind for kind in kinds if kind != "nifti")


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
    label_map: NDArray[np.integer], geometry: Geometry, case: Case, bundle: Bundle, kinds: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """Write what can be written of a case, each file whole or not at all, and return the file names."""
    names = []
    skipped = unavailable(case, kinds)
    for kind in (kind for kind in KINDS if kind in kinds and kind not in skipped):
        path = folder / f"{case.case_id}_{KINDS[kind]}"
        if kind == "nifti":
            save_nifti(label_map, geometry.affine, path)
        else:
            from medseg import outputs

            outputs.write(kind, label_map, geometry, case.channels[0], bundle, path)
        names.append(path.name)
    return tuple(names)
