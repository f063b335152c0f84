"""Labels that lie there as DICOM objects, which are not read yet: said, so that nobody takes them for read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from medseg.ingest import SeriesRecord, scan
from medseg.labels.scheme import listed

__all__ = ["NOT_READ", "describe_unread", "unread_objects"]

_OBJECTS = ("SEG", "RTSTRUCT")

NOT_READ = (
    "DICOM SEG and RTSTRUCT are not read as labels yet: convert them to label maps on the image's grid, such as NIfTI"
)
"""What to do about them."""


def describe_unread(records: Iterable[SeriesRecord]) -> str:
    """A remark for the end of a message if there are SEG or RTSTRUCT objects among the records; else empty."""
    found = [record for record in records if record.modality in _OBJECTS]
    if not found:
        return ""
    counts = Counter(record.modality for record in found)
    objects = listed([f"{count} DICOM {modality}" for modality, count in sorted(counts.items())])
    example = (found[0].files or (found[0].source,))[0]
    return f"; {objects} lie there ({Path(example).name}) and were left out: {NOT_READ}"


def unread_objects(folder: Path) -> str:
    """The same for everything below a folder."""
    return describe_unread(scan(folder)) if folder.is_dir() else ""
