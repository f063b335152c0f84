"""Image files that hold one volume: NIfTI by :mod:`medseg.ingest.nifti`, MetaImage and NRRD through SimpleITK."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.names import IMAGE_SUFFIXES, case_id_of, image_kind
from medseg.ingest.nifti import check_finite, read_nifti, read_nifti_header
from medseg.ingest.records import Kind, SeriesRecord, affine_rows
from medseg.ingest.text_headers import TextHeader, read_metaimage_header, read_nrrd_header

__all__ = ["IMAGE_SUFFIXES", "case_id_of", "image_kind", "inspect_image", "read_image"]

_HEADERS: Final = {"metaimage": read_metaimage_header, "nrrd": read_nrrd_header}
_IMAGE_IO: Final = {"metaimage": "MetaImageIO", "nrrd": "NrrdImageIO"}
_SPARE_BYTES: Final = 1024

Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]


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
            values, geometry, facts = _read_by_itk(path, kind, dtype)
        else:
            raise Refusal("unreadable", "not a NIfTI, MetaImage or NRRD file by its name; convert it or rename it")
    except OSError as error:
        raise Refusal("unreadable", f"the file cannot be read ({error.strerror or error}); check the path") from error
    return values, geometry, {**facts, "case_id": case_id_of(path)}


def inspect_image(path: str | os.PathLike[str]) -> SeriesRecord:
    """The record of one image file from its header alone; what is wrong becomes the record's reason."""
    source = os.fspath(path)
    kind = image_kind(path) or "nifti"
    known: dict[str, Any] = {"case_id": case_id_of(path), "source": source, "kind": kind, "files": _files(source, kind)}
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
        notes=getattr(header, "notes", ()),
    )


def _files(source: str, kind: Kind) -> tuple[str, ...]:
    lower = source.lower()
    for header_end, data_end in ((".hdr", ".img"), (".hdr.gz", ".img.gz")):
        if kind == "nifti" and lower.endswith((header_end, data_end)):
            stem = source[: -len(header_end)]
            return stem + header_end, stem + data_end
    return (source,)


def _checked(path: str | os.PathLike[str], kind: Kind) -> TextHeader:
    """The text header, with the size of an uncompressed file compared."""
    header = _HEADERS[kind](path)
    there = os.stat(path).st_size - header.data_offset  # noqa: PTH116 - bytes of odd names survive
    if there < (1 if header.is_compressed else header.data_bytes):
        raise Refusal("truncated", f"the file holds {there} of {header.data_bytes} bytes of values; copy it again")
    if not header.is_compressed and there > header.data_bytes + _SPARE_BYTES:
        raise Refusal(
            "unreadable", f"the file holds {there} bytes, its header declares {header.data_bytes}; write it again"
        )
    return header


def _read_by_itk(path: str | os.PathLike[str], kind: Kind, dtype: DTypeLike | None) -> Volume:
    import SimpleITK

    header = _checked(path, kind)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[kind])
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        # A link of a plain name: SimpleITK aborts on names that are not UTF-8.
        plain = Path(folder) / f"volume{'.mha' if kind == 'metaimage' else '.nrrd'}"
        plain.symlink_to(Path(path).absolute())
        reader.SetFileName(str(plain))
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise Refusal("undecodable", "SimpleITK cannot decode the values; copy the file again") from error
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    if values.shape != header.geometry.shape:
        raise Refusal("undecodable", f"SimpleITK read shape {values.shape}, the header says {header.geometry.shape}")
    check_finite(values)
    facts: dict[str, Any] = {"kind": kind, "notes": (), "resampled": None}
    return values if dtype is None else values.astype(dtype, copy=False), header.geometry, facts
