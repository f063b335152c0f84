"""From files to sound volumes: what is there, is it usable, and its exact grid.

Public names are imported when they are first used, so that a command which only asks for one of them stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.ingest.image_files import inspect_image
    from medseg.ingest.index import scan
    from medseg.ingest.left_out import is_own_output
    from medseg.ingest.nifti import save_nifti
    from medseg.ingest.read import Source, read_volume
    from medseg.ingest.record import SeriesRecord, case_id_of

__all__ = [
    "SeriesRecord",
    "Source",
    "case_id_of",
    "inspect_image",
    "is_own_output",
    "read_volume",
    "save_nifti",
    "scan",
]


__getattr__ = lazily(
    __name__,
    {
        "image_files": "inspect_image",
        "index": "scan",
        "left_out": "is_own_output",
        "nifti": "save_nifti",
        "read": "Source read_volume",
        "record": "SeriesRecord case_id_of",
    },
)
