"""Which structures a label map holds, and whether it holds what it promises: one meaning for all rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.labels.dicom_objects import object_kind
    from medseg.labels.image_grid import ImageGrid
    from medseg.labels.label_map import LabelMap, read_label_map
    from medseg.labels.read import LabelEntry, read_label
    from medseg.labels.rules import READING_KEY, ROI_MAPPING_KEY, ReadingRules
    from medseg.labels.scheme import ANNOTATED_KEY, MAPPING_KEY, LabelScheme

__all__ = [
    "ANNOTATED_KEY",
    "MAPPING_KEY",
    "READING_KEY",
    "ROI_MAPPING_KEY",
    "ImageGrid",
    "LabelEntry",
    "LabelMap",
    "LabelScheme",
    "ReadingRules",
    "object_kind",
    "read_label",
    "read_label_map",
]

__getattr__ = lazily(
    __name__,
    {
        "dicom_objects": "object_kind",
        "image_grid": "ImageGrid",
        "label_map": "LabelMap read_label_map",
        "read": "LabelEntry read_label",
        "rules": "READING_KEY ROI_MAPPING_KEY ReadingRules",
        "scheme": "ANNOTATED_KEY MAPPING_KEY LabelScheme",
    },
)
