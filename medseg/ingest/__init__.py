"""From files to sound volumes: what is there, is it usable, and its exact grid.

Public names are imported when they are first used, so that a command which only asks for one of them stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "SeriesRecord": "record",
    "Source": "read",
    "case_id_of": "record",
    "inspect_image": "image_files",
    "is_own_output": "left_out",
    "read_volume": "read",
    "save_nifti": "nifti",
    "scan": "index",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
