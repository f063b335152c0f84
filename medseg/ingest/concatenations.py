"""Multi-frame objects that were cut into several files: all parts are there, or the volume is refused.

Source: DICOM PS3.3 C.7.6.16.2.2.4 (concatenations).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from medseg.errors import Refusal
from medseg.ingest.headers import Concatenation, Header

__all__ = ["check_concatenations"]

Part = tuple[Concatenation, Header]


def check_concatenations(headers: Iterable[Header]) -> tuple[str, ...]:
    """Notes on the concatenations among the files of one series, second copies left out.

    Raises
    ------
    Refusal
        ``missing-slices`` if a part is not there, as far as the others tell.
    """
    found: dict[str, list[Part]] = defaultdict(list)
    for header in headers:
        if header.concatenation is not None:
            found[header.concatenation.uid_hash].append((header.concatenation, header))
    return tuple(note for parts in found.values() for note in _judged(parts))


def _judged(parts: list[Part]) -> tuple[str, ...]:
    totals = {part.total for part, _ in parts if part.total}
    numbers = sorted(part.number or 0 for part, _ in parts)
    total = max(totals, default=numbers[-1])
    if len(totals) > 1 or numbers != list(range(1, total + 1)) or not _join(parts):
        there = ", ".join(str(number or "?") for number in numbers)
        raise Refusal(
            "missing-slices",
            f"of a concatenation (0020,9161) the parts {there} are there, expected 1 to {total} without a gap between "
            "their frames; copy the whole series from its source",
        )
    if totals:
        return ()
    return (
        f"a concatenation of {total} parts does not say how many there are (0020,9163): a later part may be missing",
    )


def _join(parts: Sequence[Part]) -> bool:
    """Whether each part begins where the one before ends, as far as the offsets (0020,9228) are given."""
    begin = 0
    for part, header in sorted(parts, key=lambda item: item[0].number or 0):
        if part.offset is not None and part.offset != begin:
            return False
        begin += header.number_of_frames
    return True
