"""Which structures a label map holds, and whether it holds what it promises: one meaning for all rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.labels.dicom_objects import object_kind
    from medseg.labels.image_grid import ImageGrid
    from medseg.labels.label_map import (
        LabelFault,
        LabelMap,
        LabelValues,
        check_labels,
        examine,
        fault_of,
        no_label,
        read_label_map,
    )
    from medseg.labels.read import LabelEntry, read_label
    from medseg.labels.regions import ORDER_KEY
    from medseg.labels.rules import READING_KEY, ROI_MAPPING_KEY, ReadingRules
    from medseg.labels.scheme import (
        ANNOTATED_KEY,
        IGNORE,
        MAPPING_KEY,
        LabelScheme,
        parse_mapping,
        parse_names,
        read_label_table,
        read_mapping,
        renumbering_advice,
    )

__all__ = [
    "ANNOTATED_KEY",
    "IGNORE",
    "MAPPING_KEY",
    "ORDER_KEY",
    "READING_KEY",
    "ROI_MAPPING_KEY",
    "ImageGrid",
    "LabelEntry",
    "LabelFault",
    "LabelMap",
    "LabelScheme",
    "LabelValues",
    "ReadingRules",
    "check_labels",
    "examine",
    "fault_of",
    "no_label",
    "object_kind",
    "parse_mapping",
    "parse_names",
    "read_label",
    "read_label_map",
    "read_label_table",
    "read_mapping",
    "renumbering_advice",
]

__getattr__ = lazily(
    __name__,
    {
        "dicom_objects": "object_kind",
        "image_grid": "ImageGrid",
        "label_map": "LabelFault LabelMap LabelValues check_labels examine fault_of no_label read_label_map",
        "read": "LabelEntry read_label",
        "regions": "ORDER_KEY",
        "rules": "READING_KEY ROI_MAPPING_KEY ReadingRules",
        "scheme": (
            "ANNOTATED_KEY IGNORE MAPPING_KEY LabelScheme parse_mapping parse_names read_label_table read_mapping "
            "renumbering_advice"
        ),
    },
)
