"""Any source to one volume: a folder, a file, a list of files or a record; exactly one volume, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry
from medseg.ingest.archives import on_disk
from medseg.ingest.headers import read_header
from medseg.ingest.images import case_id_of, image_kind, read_image
from medseg.ingest.names import header_path
from medseg.ingest.records import SeriesRecord
from medseg.ingest.series import read_headers, read_stack
from medseg.ingest.stacks import Stack, split

__all__ = ["Source", "read_volume"]

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | SeriesRecord
Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]

# Refused for what they are, not for damage: they may lie beside the one volume that is wanted.
_BESIDE_IMAGES = ("not-an-image", "single-slice")
_BROKEN = ("truncated", "unreadable")


@dataclass(frozen=True)
class _Candidates:
    stacks: list[Stack]
    images: list[str]


def read_volume(source: Source, *, dtype: DTypeLike | None = None, allow_resample: bool = False) -> Volume:
    """Read exactly one volume.

    Parameters
    ----------
    source
        A folder with one DICOM series or one image file (searched with its sub-folders), a DICOM, NIfTI, MetaImage
        or NRRD file, a list of the files of one series, or a record of :func:`medseg.ingest.scan`. Segmentations,
        reports and single-slice localizers beside the one volume are passed over.
    dtype
        Type of the values; by default the smallest that holds them exactly, float32 after a rescale.
    allow_resample
        Resample uneven spacing or a gantry tilt onto a regular grid; recorded in ``facts["resampled"]``.

    Returns
    -------
    array
        Axes (i, j, k) as in ``geometry.shape``; values in modality units (HU for CT).
    geometry
        The exact grid: voxel index → mm, RAS+.
    facts
        What was found: ``kind``, ``case_id``, ``notes``, for DICOM ``modality``, ``rescale``, ``pet``; no identity.

    Raises
    ------
    Refusal
        The source holds no sound volume (the code says why), or several (``several-volumes``).
    UsageError
        The path does not exist or the list is empty.
    """
    if isinstance(source, SeriesRecord):
        return _read_record(source, dtype, allow_resample)
    found = _candidates(source)
    if found.images and not any(_is_volume(stack) for stack in found.stacks):
        if len(found.images) > 1:
            raise _several(found)
        return read_image(found.images[0], dtype)
    if found.images:
        raise _several(found)
    return read_stack(_the_one(found), dtype, allow_resample=allow_resample)


def _read_record(record: SeriesRecord, dtype: DTypeLike | None, allow_resample: bool) -> Volume:
    with on_disk(record.files) as files:
        if record.kind == "dicom":
            values, geometry, facts = read_stack(_stack_of(record, files), dtype, allow_resample=allow_resample)
        else:
            values, geometry, facts = read_image(files[0], dtype)
    return values, geometry, {**facts, "case_id": record.case_id}


def _stack_of(record: SeriesRecord, files: Sequence[str]) -> Stack:
    stacks = split(read_headers(files))
    # A multi-frame file holds all stacks of its series; files of classic slices only those of this record.
    chosen = [stack for stack in stacks if stack.case_id == record.case_id] if len(stacks) > 1 else stacks
    if len(chosen) != 1:
        message = record.message or "the files of this record are not what they were; scan again"
        raise Refusal(record.reason or "unreadable", message)
    return chosen[0]


def _candidates(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> _Candidates:
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not os.path.exists(path):  # noqa: PTH110 - names that are not UTF-8 survive
            raise UsageError(f"{path!r} does not exist; give a folder of one series or an image file")
        files = sorted(_walk(path)) if os.path.isdir(path) else [path]  # noqa: PTH112
        given = not os.path.isdir(path)  # noqa: PTH112
    else:
        files, given = [os.fspath(file) for file in source], True
    if not files:
        raise UsageError("there are no files to read; give a folder of one series or an image file")
    images = [file for file in files if image_kind(file) is not None and not _is_second_of_pair(file, files)]
    stacks = split(read_headers(file for file in files if image_kind(file) is None))
    if not images and not stacks:
        _explain(files, given)
    return _Candidates(stacks, images)


def _walk(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (os.path.join(root, name) for name in names)  # noqa: PTH118


def _is_second_of_pair(file: str, files: Sequence[str]) -> bool:
    header = header_path(file)
    return header != file and header in files


def _explain(files: Sequence[str], given: bool) -> None:
    """Say why none of the files is a volume."""
    if given and len(files) == 1:
        try:
            read_header(files[0])
        except OSError as error:
            raise Refusal("unreadable", f"the file cannot be opened ({error.strerror or error}); check it") from error
        raise Refusal("unreadable", "neither DICOM nor, by its name, NIfTI, MetaImage or NRRD; check what the file is")
    raise Refusal("not-an-image", f"none of {len(files)} files is DICOM, NIfTI, MetaImage or NRRD; check the folder")


def _is_volume(stack: Stack) -> bool:
    return stack.reason not in _BESIDE_IMAGES


def _the_one(found: _Candidates) -> Stack:
    volumes = [stack for stack in found.stacks if _is_volume(stack)]
    broken = [stack for stack in volumes if stack.reason in _BROKEN]
    if broken:  # which volume lacks the broken file, nobody knows
        return broken[0]
    if len(volumes) > 1:
        raise _several(_Candidates(volumes, []))
    if volumes:
        return volumes[0]
    return next((stack for stack in found.stacks if stack.reason == "single-slice"), found.stacks[0])


def _several(found: _Candidates) -> Refusal:
    stacks = (
        f"{s.case_id} ({s.headers[0].modality}, {len(s.headers)} slices, {s.reason or 'usable'})" for s in found.stacks
    )
    names = [*stacks, *(case_id_of(image) for image in found.images)]
    shown = "; ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return Refusal("several-volumes", f"found {len(names)} volumes where one was expected: {shown}; give one of them")
