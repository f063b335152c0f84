"""Image files that hold one volume: NIfTI, MetaImage and NRRD."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import DTypeLike

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.nifti import read_nifti_header
from medseg.ingest.record import (
    Kind,
    SeriesRecord,
    Volume,
    case_id_of,
    dicom_header_of,
    grid_of,
    image_kind,
    pair_of,
)
from medseg.ingest.stored_values import ImageHeader, check_stored_size, read_stored


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of those read here: by its name, unless it is DICOM by its content."""
    try:
        return image_kind(path) is not None and dicom_header_of(path) is None
    except OSError:
        return True


def _header(path: str | os.PathLike[str], kind: Kind) -> ImageHeader:
    if kind == "nifti":
        return read_nifti_header(path)
    from medseg.ingest import metaimage_nrrd

    return (metaimage_nrrd.read_nrrd_header if kind == "nrrd" else metaimage_nrrd.read_metaimage_header)(path)


def read_image(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Volume:
    """Values with axes (i, j, k), grid and facts of one image file, or a Refusal; as stored, float32 if scaled."""
    with _opened(path) as (header, facts):
        values = read_stored(header.stored, dtype)
        return values, header.geometry, {**facts, "scaling": header.stored.scaling, "resampled": None}


def read_image_grid(path: str | os.PathLike[str]) -> tuple[Geometry, dict[str, Any]]:
    """Grid and facts of one image file from its header alone, or a Refusal."""
    with _opened(path) as (header, facts):
        return header.geometry, facts


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[ImageHeader, dict[str, Any]]]:
    kind = image_kind(path)
    if kind is None:
        raise Refusal("unreadable", "not a NIfTI, MetaImage or NRRD file by its name; convert it or rename it")
    try:
        header = _header(path, kind)
        yield header, {"kind": kind, "notes": header.notes, "case_id": case_id_of(path)}
    except OSError as error:
        raise Refusal("unreadable", f"the file cannot be read ({error.strerror or error}); check the path") from error


def inspect_image(path: str | os.PathLike[str]) -> SeriesRecord:
    """The record of one image file from its header alone; what is wrong becomes the record's reason."""
    source = os.fspath(path)
    kind = image_kind(path) or "nifti"
    # Both halves of a pair, header first, as far as they are there; else the one file.
    halves = pair_of(source) or (source,)
    files = tuple(half for half in halves if half == source or os.path.exists(half))  # noqa: PTH110
    known: dict[str, Any] = {"case_id": case_id_of(path), "source": source, "kind": kind, "files": files}
    try:
        header = _header(path, kind)
        check_stored_size(header.stored)
    except Refusal as refusal:
        return SeriesRecord(**known, usable=False, reason=refusal.code, message=refusal.message)
    except OSError as error:
        return SeriesRecord(**known, usable=False, reason="unreadable", message=f"cannot be read ({error.strerror})")
    return SeriesRecord(**known, usable=True, notes=header.notes, **grid_of(header.geometry))
