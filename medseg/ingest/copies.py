"""Second copies of slices: left out where they are the very same image, refused where they are not.

Headers are compared first, then the values, so that a copy is never believed by its UID alone. This is the one place
where a verdict needs pixels; it reads those of copies only.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.ingest.dicom_elements import DEFLATED, open_file
from medseg.ingest.dicom_header import Header
from medseg.ingest.pixels import check_pixels, read_slices
from medseg.ingest.walk import on_disk

_CLOCKS: Final = frozenset(("acquisition date", "acquisition time", "content time"))
_FIELDS: Final = """
    rows columns samples_per_pixel photometric pixel_spacing position orientation rescale padding image_type
    number_of_frames frames modality frame_of_reference_hash id_hash defect"""
_DECIDING: Final = tuple(_FIELDS.split())
"""Fields of a header that decide values and place."""

_MEANING: Final = ("bits_allocated", "bits_stored", "signed", "transfer_syntax", "frame")
"""Further fields that decide what the bytes of the pixel data mean."""


def without_copies(headers: Sequence[Header]) -> tuple[list[Header], tuple[str, ...]]:
    """Keep one file of each SOPInstanceUID, with a note of how many copies were left out.

    Files of one UID that differ in what decides values and place are refused as ``duplicate-slices``.
    """
    kept: dict[str, Header] = {}
    for header in headers:
        known = kept.setdefault(header.sop_instance_hash or header.path, header)
        if known is not header and not _is_copy(known, header):
            message = "different images carry one SOPInstanceUID (0008,0018); export the series again from its source"
            raise Refusal("duplicate-slices", message)
    copies = len(headers) - len(kept)
    return list(kept.values()), (f"{copies} second copies of slices were left out",) if copies else ()


def without_equal_images(headers: Sequence[Header], places: NDArray[np.int64]) -> tuple[list[Header], tuple[str, ...]]:
    """Of slices at one place that are equal in header and values keep the first, whatever their UIDs.

    Slices that differ in times alone are copies only if all that share a place are: slices without signal are equal at
    all time points.
    """
    dropped = _equal(headers, places, frozenset[str](), all_or_none=False)
    if len(headers) - len(dropped) > int(places[-1]) + 1:
        dropped = _equal(headers, places, _CLOCKS, all_or_none=True) or dropped
    kept = [header for index, header in enumerate(headers) if index not in dropped]
    return kept, (f"{len(dropped)} copies of slices under other SOPInstanceUIDs were left out",) if dropped else ()


def _equal(headers: Sequence[Header], places: NDArray[np.int64], but: frozenset[str], *, all_or_none: bool) -> set[int]:
    """Which slices equal an earlier one at their place; none at all, with ``all_or_none``, if any there does not."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, (header, place) in enumerate(zip(headers, places.tolist(), strict=True)):
        alike[place, *_deciding(header, but)].append(index)
    if all_or_none and len(alike) > int(places[-1]) + 1:
        return set()
    dropped: set[int] = set()
    for indices in alike.values():
        seen: set[bytes] = set()
        for index in indices if len(indices) > 1 else ():
            digest = _digest(headers[index])
            if digest in seen:
                dropped.add(index)
            elif seen and all_or_none:
                return set()
            seen.add(digest)
    return dropped


def _digest(header: Header) -> bytes:
    """A digest of the values of one slice, whatever their type."""
    with on_disk([header.path]) as (path,):
        values = read_slices([header._replace(path=path)])
    return hashlib.blake2b(values.astype(np.float64).tobytes()).digest()


def _deciding(header: Header, but: frozenset[str]) -> tuple[Any, ...]:
    attributes = frozenset(item for item in header.attributes.items() if item[0] not in but)
    return (*(getattr(header, name) for name in _DECIDING), attributes)


def _is_copy(one: Header, other: Header) -> bool:
    if _deciding(one, _CLOCKS) != _deciding(other, _CLOCKS):
        return False
    if not one.pixel_tag or not other.pixel_tag or one.defect is not None:
        return one.pixel_tag == other.pixel_tag  # refused anyway, and for a better reason
    if one.path == other.path and one.frame == other.frame:
        return True
    with on_disk([one.path, other.path]) as (first, second):
        here, there = one._replace(path=first), other._replace(path=second)
        return _same_bytes(here, there) or _same_slices(here, there)


def _same_bytes(one: Header, other: Header) -> bool:
    """Equal bytes of equal meaning; deflated ones are inflated instead."""
    if any(getattr(one, name) != getattr(other, name) for name in _MEANING) or one.transfer_syntax == DEFLATED:
        return False
    return _pixel_bytes(one) == _pixel_bytes(other)


def _pixel_bytes(header: Header) -> bytes:
    with open_file(header.path) as handle:
        handle.seek(header.pixel_offset)
        return handle.read(-1 if header.pixel_length is None else header.pixel_length) or b""


def _same_slices(one: Header, other: Header) -> bool:
    frames = one.per_frame(), other.per_frame()
    for header in (*frames[0], *frames[1]):
        check_pixels(header)
    return np.array_equal(read_slices(frames[0]), read_slices(frames[1]))
