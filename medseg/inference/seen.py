"""Whether a case is among those that the bundle has learnt from, by the SHA-256 sums of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from medseg.bundle import TrainingData
from medseg.inference.cases import InputCase
from medseg.ingest import SeriesRecord
from medseg.ingest import walk as archives
from medseg.manifests.create import path_checksum


def seen_in_training(case: InputCase, sums: Mapping[str, str], known: TrainingData | None) -> bool | None:
    """Whether any channel of a case is an image that was trained on; ``None`` if the bundle does not tell.

    Parameters
    ----------
    case
        The case.
    sums
        SHA-256 of each of its files.
    known
        What the bundle says of itself.
    """
    if known is None:
        return None
    if not known.images.isdisjoint(sums.values()):
        return True
    return any(_folder_sum(record, sums) in known.images for record in case.channels if record.kind == "dicom")


def _folder_sum(record: SeriesRecord, sums: Mapping[str, str]) -> str:
    """The sum of a series' folder as a datalist states it: over every file that lies there, not the series' alone."""
    folders = {os.path.dirname(file) for file in record.files}  # noqa: PTH120 - bytes of odd names survive
    if len(folders) != 1 or any(archives.is_member(file) for file in record.files):
        return ""
    return path_checksum(Path(folders.pop()), {Path(file): sums[file] for file in record.files})
