"""What is known of one volume before it is read: one record per stack of DICOM slices or per image file."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Literal

from medseg.errors import ReasonCode
from medseg.geometry import Geometry
from medseg.ingest.stacks import Stack

__all__ = ["Kind", "SeriesRecord", "affine_rows", "record_of_stack", "unforeseen"]

_log = logging.getLogger(__name__)

Kind = Literal["dicom", "nifti", "metaimage", "nrrd"]
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SeriesRecord:
    """One volume, usable or refused.

    Attributes
    ----------
    case_id
        Name under which results are stored; never derived from what identifies the patient.
    source
        The folder or file to show, as given.
    kind
        ``"dicom"``, ``"nifti"``, ``"metaimage"`` or ``"nrrd"``.
    files
        The files, for DICOM sorted along the normal of the slices.
    series_uid_hash, study_uid_hash, patient_hash
        Hashes for grouping; empty where there is nothing to hash.
    modality, description
        As in the header; empty where there is none.
    shape, spacing_mm, affine, orientation
        The grid: sizes along (i, j, k), mm, voxel index → mm in RAS+ as nested tuples, letters such as ``"LPS"``;
        ``None`` or empty where the volume has no sound grid.
    transfer_syntax
        DICOM transfer syntax UID, or empty.
    usable, reason, message
        The verdict: a reason code of :data:`medseg.errors.REASON_CODES` and its explanation where refused.
    notes
        What is worth knowing about a usable volume.
    is_volume
        Whether it is a volume, or was meant as one; reports, single slices, dose reports and screen shots are none.
    series_number, contrast
        As in the header; whether a contrast agent is named there.
    acquired
        When it was acquired, in days from an arbitrary day (secret, one per patient): good for the order within a
        patient, useless for anything else. Only the index fills it in.
    """

    case_id: str
    source: str
    kind: Kind
    files: tuple[str, ...]
    series_uid_hash: str = ""
    study_uid_hash: str = ""
    patient_hash: str = ""
    modality: str = ""
    description: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine: Rows | None = None
    orientation: str = ""
    transfer_syntax: str = ""
    usable: bool = False
    reason: ReasonCode | None = None
    message: str = ""
    notes: tuple[str, ...] = ()
    is_volume: bool = True
    series_number: int | None = None
    contrast: bool | None = None
    acquired: float | None = None


def affine_rows(geometry: Geometry) -> Rows:
    """The affine of a grid as nested tuples."""
    return tuple(tuple(float(value) for value in row) for row in geometry.affine)


def unforeseen(error: Exception) -> str:
    """The message of a record that was refused for an error no reader foresaw.

    It names the class alone: the text of such an error may quote the header, and so the patient.
    """
    _log.debug("a reader failed", exc_info=error)
    return (
        f"the reader failed on it ({type(error).__name__}), expected a sound file or a known fault; write it again "
        "from its source, and report the fault of the reader"
    )


def record_of_stack(stack: Stack, source: str | None = None) -> SeriesRecord:
    """The record of one stack of DICOM slices; ``source`` defaults to the folder that holds its files."""
    first, geometry = stack.headers[0], stack.geometry
    return SeriesRecord(
        case_id=stack.case_id,
        source=os.path.dirname(first.path) if source is None else source,  # noqa: PTH120 - bytes of odd names survive
        kind="dicom",
        files=stack.files,
        series_uid_hash=first.series_uid_hash,
        study_uid_hash=first.study_uid_hash,
        patient_hash=first.patient_hash,
        modality=first.modality,
        description=first.description,
        shape=None if geometry is None else geometry.shape,
        spacing_mm=None if geometry is None else geometry.spacing_mm,
        affine=None if geometry is None else affine_rows(geometry),
        orientation="" if geometry is None else geometry.orientation,
        transfer_syntax=first.transfer_syntax,
        usable=stack.usable,
        reason=stack.reason,
        message=stack.message,
        notes=stack.notes,
        is_volume=stack.is_volume,
        series_number=first.series_number,
        contrast=first.contrast_agent,
    )
