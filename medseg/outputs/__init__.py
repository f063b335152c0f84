"""DICOM objects made from a label map: Segmentation, measurement report, RT structure set, pictures.

Each is placed by affine, refers to the images it was made from, and is read again and compared before the file
gets its final name. DICOM libraries are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily
from medseg.outputs.write import KINDS, write

if TYPE_CHECKING:
    from medseg.outputs.common import WriteOptions

__all__ = ["KINDS", "WriteOptions", "write"]

__getattr__ = lazily(__name__, {"common": "WriteOptions"})
