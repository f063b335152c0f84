"""From files to sound volumes: what is there, is it usable, and its exact grid.

Public names are imported when they are first used, so that a command which only asks for one of them stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.ingest.images import case_id_of, inspect_image
    from medseg.ingest.nifti import save_nifti
    from medseg.ingest.own import is_own_output
    from medseg.ingest.records import SeriesRecord
    from medseg.ingest.series_index import scan
    from medseg.ingest.volume import Source, read_volume

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
    "SeriesRecord": "records",
    "Source": "volume",
    "case_id_of": "images",
    "inspect_image": "images",
    "is_own_output": "own",
    "read_volume": "volume",
    "save_nifti": "nifti",
    "scan": "series_index",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
