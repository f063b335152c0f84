"""DICOM objects made from a label map: Segmentation, measurement report, RT structure set, pictures.

Each is placed by affine, refers to the images it was made from, and is read again and compared before the file
gets its final name. DICOM libraries are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.outputs.write import KINDS, write, write_rtstruct, write_sc, write_seg, write_sr

if TYPE_CHECKING:
    from medseg.outputs.common import WriteOptions

__all__ = ["KINDS", "WriteOptions", "write", "write_rtstruct", "write_sc", "write_seg", "write_sr"]


def __getattr__(name: str) -> Any:
    if name == "WriteOptions":
        return import_module("medseg.outputs.common").WriteOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
