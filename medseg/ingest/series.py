"""From the headers of one stack to its volume: sorted, checked values in modality units on an exact grid."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import resampling
from medseg.ingest.headers import Header, read_header
from medseg.ingest.pet import suv_facts
from medseg.ingest.pixels import LOSSY_SYNTAXES, read_slices
from medseg.ingest.stacks import Stack

__all__ = ["read_headers", "read_stack"]

Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]


def read_headers(files: Iterable[str | os.PathLike[str]]) -> list[Header]:
    """The headers of the DICOM files among ``files``, without directories; other files are passed over.

    Raises
    ------
    OSError
        A file cannot be opened: a volume without it would lack a slice.
    """
    headers = (read_header(file) for file in files)
    return [header for header in headers if header is not None and not header.is_directory]


def read_stack(stack: Stack, dtype: DTypeLike | None = None, *, allow_resample: bool = False) -> Volume:
    """Read the volume of one stack.

    Parameters
    ----------
    stack
        As :func:`medseg.ingest.stacks.split` gives it.
    dtype
        Type of the values; by default integers where these are exact, float32 after a rescale.
    allow_resample
        Resample uneven spacing, or a gantry tilt, onto a regular grid with perpendicular axes by linear
        interpolation. Without it uneven spacing is refused and a tilt is kept as an exact sheared affine.

    Returns
    -------
    array, geometry, facts
        Axes (i, j, k); values in modality units (HU for CT). ``facts`` says what was found on the way:
        ``modality``, ``transfer_syntax``, ``notes``, ``pet`` (for SUV), ``resampled``, ...; no identity.

    Raises
    ------
    Refusal
        With the stack's own reason, or what the pixel data show.
    """
    remedy = resampling.plan(stack) if allow_resample else None
    if remedy is None and (not stack.usable or stack.geometry is None):
        raise Refusal(stack.reason or "unreadable", stack.message)
    values = read_slices(stack.headers, np.float32 if remedy is not None and dtype is None else dtype)
    facts = _facts(stack)
    if remedy is None:
        assert stack.geometry is not None
        return values, stack.geometry, facts
    values, geometry = resampling.apply(remedy, values)
    facts["resampled"] = remedy.describe()
    facts["notes"] = (*facts["notes"], f"resampled on request: {remedy.because}")
    return values, geometry, facts


def _facts(stack: Stack) -> dict[str, Any]:
    first = stack.headers[0]
    notes = list(stack.notes)
    lossy = LOSSY_SYNTAXES.get(first.transfer_syntax)
    if lossy:
        notes.append(f"compressed with loss or by a syntax that allows it ({lossy})")
    facts: dict[str, Any] = {
        "kind": "dicom",
        "case_id": stack.case_id,
        "series_uid_hash": first.series_uid_hash,
        "frame_of_reference_hash": first.frame_of_reference_hash,
        "modality": first.modality,
        "transfer_syntax": first.transfer_syntax,
        "photometric": first.photometric,
        "rescale": sorted({header.rescale or (1.0, 0.0) for header in stack.headers}),
        "padding": first.padding,
        "notes": tuple(notes),
        "resampled": None,
    }
    if first.modality == "PT":
        facts["pet"] = suv_facts(first.path)
    return facts
