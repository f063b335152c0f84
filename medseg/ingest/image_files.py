"""Image files that hold one volume: NIfTI, MetaImage and NRRD."""

from __future__ import annotations

import os
from typing import Any, Final

from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.dicom_header import is_dicom
from medseg.ingest.metaimage_nrrd import read_metaimage_header, read_nrrd_header
from medseg.ingest.nifti import read_nifti_header
from medseg.ingest.record import SeriesRecord, case_id_of, grid_of, image_kind, pair_of
from medseg.ingest.stored_values import check_stored_size, read_stored

_HEADERS: Final = {"nifti": read_nifti_header, "metaimage": read_metaimage_header, "nrrd": read_nrrd_header}

Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of those read here: by its name, unless it is DICOM by its content (some are ``.img``)."""
    return image_kind(path) is not None and not is_dicom(path)


def read_image(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Volume:
    """Values with axes (i, j, k), grid and facts of one image file; as stored by default, float32 if scaled.

    Raises
    ------
    Refusal
        With the reason code of what is wrong.
    """
    kind = image_kind(path)
    if kind is None:
        raise Refusal("unreadable", "not a NIfTI, MetaImage or NRRD file by its name; convert it or rename it")
    try:
        header = _HEADERS[kind](path)
        values = read_stored(header.stored, dtype)
    except OSError as error:
        raise Refusal("unreadable", f"the file cannot be read ({error.strerror or error}); check the path") from error
    facts: dict[str, Any] = {"kind": kind, "notes": header.notes, "scaling": header.stored.scaling, "resampled": None}
    return values, header.geometry, {**facts, "case_id": case_id_of(path)}


def inspect_image(path: str | os.PathLike[str]) -> SeriesRecord:
    """The record of one image file from its header alone; what is wrong becomes the record's reason."""
    source = os.fspath(path)
    kind = image_kind(path) or "nifti"
    # Both halves of a pair, header first, as far as they are there; else the one file.
    halves = pair_of(source) or (source,)
    files = tuple(half for half in halves if half == source or os.path.exists(half))  # noqa: PTH110
    known: dict[str, Any] = {"case_id": case_id_of(path), "source": source, "kind": kind, "files": files}
    try:
        header = _HEADERS[kind](path)
        check_stored_size(header.stored)
    except Refusal as refusal:
        return SeriesRecord(**known, usable=False, reason=refusal.code, message=refusal.message)
    except OSError as error:
        return SeriesRecord(**known, usable=False, reason="unreadable", message=f"cannot be read ({error.strerror})")
    return SeriesRecord(**known, usable=True, notes=header.notes, **grid_of(header.geometry))
