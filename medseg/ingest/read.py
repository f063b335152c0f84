"""Any source to one volume: a folder, a file, a list of files or a record; exactly one volume, or a refusal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import DTypeLike

from medseg.errors import Refusal, UsageError
from medseg.ingest.image_files import read_image, read_image_grid
from medseg.ingest.left_out import LOCKED, Leftover, describe, leftover_of, named_as_dicom, note_on
from medseg.ingest.record import (
    SeriesRecord,
    Volume,
    case_id_of,
    dicom_header_of,
    header_path,
    image_kind,
    is_apple_double,
)
from medseg.ingest.walk import on_disk, walk

if TYPE_CHECKING:
    from medseg.geometry import Geometry
    from medseg.ingest.dicom_header import Header
    from medseg.ingest.stacks import Stack

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | SeriesRecord


@dataclass(frozen=True)
class _Candidates:
    """What was found in a source: DICOM headers and their stacks, other image files, files that nobody can read."""

    headers: list[Header] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)


def read_volume(source: Source, *, dtype: DTypeLike | None = None, allow_resample: bool = False) -> Volume:
    """Read exactly one volume.

    Parameters
    ----------
    source
        A folder with one DICOM series or one image file (searched with its sub-folders), a DICOM, NIfTI, MetaImage
        or NRRD file, a list of the files of one series (each of which must be readable), or a record of
        :func:`medseg.ingest.scan`. Segmentations, reports, pictures without a place in the patient and single-slice
        localizers beside the one volume are passed over.
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
        The path does not exist, or the list is empty or holds what does not exist or is a folder.
    """
    with _the_one(source) as (found, beside):
        if isinstance(found, str):
            values, geometry, facts = read_image(found, dtype)
        else:
            from medseg.ingest.read_dicom import read_stack  # not needed for other image files

            values, geometry, facts = read_stack(found, dtype, allow_resample=allow_resample)
    if isinstance(source, SeriesRecord):
        facts["case_id"] = source.case_id
    return values, geometry, {**facts, "notes": tuple(dict.fromkeys((*facts["notes"], *beside)))}


def read_grid(source: Source) -> tuple[Geometry, dict[str, Any]]:
    """Grid and facts of exactly one volume, as :func:`read_volume` finds them, without reading its pixels.

    Raises ``Refusal``: as :func:`read_volume`, as far as headers tell; ``UsageError``: as :func:`read_volume`.
    """
    with _the_one(source) as (found, _):
        if isinstance(found, str):
            return read_image_grid(found)
        from medseg.ingest.read_dicom import facts_of

        if found.geometry is None:
            raise Refusal(found.reason or "unreadable", found.message)
        return found.geometry, facts_of(found)


@contextmanager
def _the_one(source: Source) -> Iterator[tuple[str | Stack, tuple[str, ...]]]:
    """The image file or the stack that a source holds, on disk for the time being; with notes on what lies beside."""
    if isinstance(source, SeriesRecord):
        with on_disk(source.files) as files:
            if source.kind == "dicom":
                from medseg.ingest.read_dicom import stack_of

                yield stack_of(source, files), source.notes
            else:
                yield files[0], source.notes  # the index knows what lay beside the files of the record
        return
    found = _candidates(source)
    if not found.images:
        stack = _stack_of(found.stacks)
        yield stack, (*note_on(found.leftovers, stack.files), *_passed_over(stack, found.stacks))
    elif len(found.images) > 1 or any(stack.is_volume for stack in found.stacks):
        raise _several(found.stacks, found.images)
    else:
        yield found.images[0], ()


def _candidates(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> _Candidates:
    found = _Candidates()
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not os.path.exists(path):  # noqa: PTH110 - names that are not UTF-8 survive
            raise UsageError(f"{path!r} does not exist; give a folder of one series or an image file")
        given = [] if os.path.isdir(path) else [path]  # noqa: PTH112
        files = given or _files_below(path, found.leftovers)
    else:
        given = files = [os.fspath(file) for file in source]
        _check_list(files)
    if not files:
        raise UsageError("there are no files to read; give a folder of one series or an image file")
    for file in files:
        _sort_in(file, found)
    # The second half of a pair is no image of its own.
    found.images[:] = [i for i in found.images if header_path(i) == i or header_path(i) not in found.images]
    if found.headers:
        from medseg.ingest.stacks import split

        found.stacks.extend(split(found.headers))
    if given:
        _check_all_read(found, len(files))
    if not found.images and not found.stacks:
        raise Refusal("not-an-image", _why_nothing(found, len(files)))
    return found


def _files_below(folder: str, leftovers: list[Leftover]) -> list[str]:
    """All files below a folder, found as the index finds them; folders that cannot be listed become leftovers."""
    unreadable: list[str] = []
    folders = list(walk([folder], unreadable))
    leftovers.extend(Leftover(os.path.join(path, ""), LOCKED) for path in unreadable)  # noqa: PTH118
    return [os.path.join(found.path, entry.name) for found in folders for entry in found.entries]  # noqa: PTH118


def _check_list(files: Sequence[str]) -> None:
    gone = [file for file in files if not os.path.exists(file)]  # noqa: PTH110
    if gone:
        raise UsageError(f"{len(gone)} of {len(files)} listed files do not exist, such as {gone[0]!r}; correct them")
    folders = [file for file in files if os.path.isdir(file)]  # noqa: PTH112
    if folders:
        raise UsageError(
            f"{len(folders)} of {len(files)} listed files are folders, such as {folders[0]!r}; give a folder by itself"
        )


def _sort_in(file: str, found: _Candidates) -> None:
    """Recognise one file: by its content as DICOM, else by its name as another image."""
    try:
        header = dicom_header_of(file)
        if header is None and is_apple_double(file):
            return
    except OSError:
        header = None
    if header is not None:
        if not header.is_directory:
            found.headers.append(header)
    elif image_kind(file) is not None:
        found.images.append(file)
    elif (left := leftover_of(file)) is not None:
        found.leftovers.append(left)


def _check_all_read(found: _Candidates, count: int) -> None:
    """A file that was named must be read: nobody names a slice to have it left out."""
    if not found.leftovers:
        return
    if count > 1:
        raise Refusal(
            "unreadable",
            f"{len(found.leftovers)} of {count} listed files are neither DICOM nor, by their names, NIfTI, MetaImage "
            f"or NRRD: {describe(found.leftovers)}; check them, or take them off the list",
        )
    if found.leftovers[0].why == LOCKED:
        raise Refusal("unreadable", "the file cannot be opened; check what it is, and its permissions")
    raise Refusal("unreadable", "neither DICOM nor, by its name, NIfTI, MetaImage or NRRD; check what the file is")


def _why_nothing(found: _Candidates, count: int) -> str:
    message = f"none of {count} files is DICOM, NIfTI, MetaImage or NRRD"
    named = [left for left in found.leftovers if named_as_dicom(left.path)]
    return f"{message}; {describe(named)}: copy or unpack them again" if named else f"{message}; check the folder"


def _stack_of(stacks: Sequence[Stack]) -> Stack:
    volumes = [stack for stack in stacks if stack.is_volume]
    broken = [stack for stack in volumes if stack.is_broken]
    if broken:  # which volume lacks the broken file, nobody knows
        return broken[0]
    if len(volumes) > 1:
        raise _several(volumes)
    if volumes:
        return volumes[0]
    return next((stack for stack in stacks if stack.reason == "single-slice"), stacks[0])


def _passed_over(stack: Stack, stacks: Sequence[Stack]) -> tuple[str, ...]:
    """A note on images beside the volume; reports and segmentations need none."""
    reasons = Counter(other.reason for other in stacks if other is not stack and other.reason != "not-an-image")
    beside = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return (f"passed over beside the volume: {beside}",) if beside else ()


def _several(stacks: Sequence[Stack], images: Sequence[str] = ()) -> Refusal:
    names = [f"{s.case_id} ({s.headers[0].modality}, {len(s.headers)} slices, {s.reason or 'usable'})" for s in stacks]
    names += map(case_id_of, images)
    shown = "; ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return Refusal("several-volumes", f"found {len(names)} volumes where one was expected: {shown}; give one of them")
