"""Image files that hold one volume: NIfTI, MetaImage and NRRD."""

from __future__ import annotations

import os
from typing import Any, Final

from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.dicom_header import read_header
from medseg.ingest.metaimage_nrrd import read_metaimage_header, read_nrrd_header
from medseg.ingest.nifti import read_nifti, read_nifti_header
from medseg.ingest.record import Kind, SeriesRecord, affine_rows, case_id_of, image_kind, pair_of
from medseg.ingest.stored_values import check_stored_size, read_stored
from medseg.ingest.text_headers import TextHeader

_HEADERS: Final = {"metaimage": read_metaimage_header, "nrrd": read_nrrd_header}

Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of those read here: by its name, unless it is DICOM by its content (some are ``.img``)."""
    if image_kind(path) is None:
        return False
    try:
        return read_header(path) is None
    except OSError:  # reading it as what its name says tells why
        return True


def read_image(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Volume:
    """Read the volume of one image file.

    Parameters
    ----------
    path
        A file that :func:`image_kind` knows.
    dtype
        Type of the values; by default as stored (float32 if NIfTI scales them).

    Returns
    -------
    array, geometry, facts
        Axes (i, j, k).

    Raises
    ------
    Refusal
        With the reason code of what is wrong.
    """
    kind = image_kind(path)
    try:
        if kind == "nifti":
            values, geometry, facts = read_nifti(path, dtype)
        elif kind is not None:
            values, geometry, facts = _read_text_headed(path, kind, dtype)
        else:
            raise Refusal("unreadable", "not a NIfTI, MetaImage or NRRD file by its name; convert it or rename it")
    except OSError as error:
        raise Refusal("unreadable", f"the file cannot be read ({error.strerror or error}); check the path") from error
    return values, geometry, {**facts, "case_id": case_id_of(path)}


def inspect_image(path: str | os.PathLike[str]) -> SeriesRecord:
    """The record of one image file from its header alone; what is wrong becomes the record's reason."""
    source = os.fspath(path)
    kind = image_kind(path) or "nifti"
    known: dict[str, Any] = {"case_id": case_id_of(path), "source": source, "kind": kind, "files": _files(source)}
    try:
        header = read_nifti_header(path) if kind == "nifti" else _checked(path, kind)
    except Refusal as refusal:
        return SeriesRecord(**known, usable=False, reason=refusal.code, message=refusal.message)
    except OSError as error:
        return SeriesRecord(**known, usable=False, reason="unreadable", message=f"cannot be read ({error.strerror})")
    geometry = header.geometry
    return SeriesRecord(
        **known,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        affine=affine_rows(geometry),
        orientation=geometry.orientation,
        usable=True,
        notes=header.notes,
    )


def _files(source: str) -> tuple[str, ...]:
    """The files that are there: both halves of a pair, header first, or the one that was given."""
    halves = pair_of(source) or (source,)
    return tuple(half for half in halves if half == source or os.path.exists(half))  # noqa: PTH110


def _checked(path: str | os.PathLike[str], kind: Kind) -> TextHeader:
    """The text header, with the size of the file compared."""
    header = _HEADERS[kind](path)
    check_stored_size(path, header.stored)
    return header


def _read_text_headed(path: str | os.PathLike[str], kind: Kind, dtype: DTypeLike | None) -> Volume:
    header = _HEADERS[kind](path)
    values = read_stored(path, header.stored, dtype)
    facts: dict[str, Any] = {
        "kind": kind,
        "notes": header.notes,
        "scaling": header.stored.scaling,
        "resampled": None,
    }
    return values, header.geometry, facts
