"""The volume of one stack of DICOM slices: values, grid and facts, resampled where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from medseg.errors import Refusal
from medseg.ingest import resampling
from medseg.ingest.dicom_header import Header, read_header
from medseg.ingest.pixels import LOSSY_SYNTAXES, read_slices
from medseg.ingest.record import SeriesRecord, Volume
from medseg.ingest.stacks import Stack, split
from medseg.ingest.suv import suv_facts


def stack_of(record: SeriesRecord, files: Sequence[str]) -> Stack:
    """The stack of a record of the index, read again from its files."""
    try:
        stacks = split(read_headers(files))
    except OSError as error:
        message = f"a file of this record cannot be opened ({error.strerror or error}); scan again"
        raise Refusal("unreadable", message) from error
    # A multi-frame file holds all stacks of its series; files of classic slices only those of this record.
    chosen = [stack for stack in stacks if stack.case_id == record.case_id] if len(stacks) > 1 else stacks
    if len(chosen) != 1:
        message = record.message or "the files of this record are not what they were; scan again"
        raise Refusal(record.reason or "unreadable", message)
    return chosen[0]


def read_headers(files: Iterable[str | os.PathLike[str]]) -> list[Header]:
    """The headers of the DICOM files among ``files``, without directories; other files are passed over.

    A file that cannot be opened is an OSError: a volume without it would lack a slice.
    """
    headers = (read_header(file) for file in files)
    return [header for header in headers if header is not None and not header.is_directory]


def read_stack(stack: Stack, dtype: DTypeLike | None = None, *, allow_resample: bool = False) -> Volume:
    """Read the volume of one stack, as :func:`read_volume` does.

    Without ``allow_resample`` uneven spacing is refused and a tilt is kept as an exact sheared affine. A Refusal has
    the stack's own reason, or what the pixel data show.
    """
    remedy = resampling.plan(stack) if allow_resample else None
    if remedy is None and stack.geometry is None:
        raise Refusal(stack.reason or "unreadable", stack.message)
    values = read_slices(stack.headers, np.float32 if remedy is not None and dtype is None else dtype)
    facts = facts_of(stack)
    if remedy is None:
        assert stack.geometry is not None  # refused above
        return values, stack.geometry, facts
    values, geometry = resampling.apply(remedy, values)
    facts["resampled"] = remedy.describe()
    facts["notes"] = (*facts["notes"], f"resampled on request: {remedy.because}")
    return values, geometry, facts


def facts_of(stack: Stack) -> dict[str, Any]:
    """What the headers of a stack tell besides its grid; no identity."""
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
