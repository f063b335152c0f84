"""Which structures a label map holds, and whether it holds what it promises: one meaning for all rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
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
    from medseg.labels.regions import ORDER_KEY
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
    "LabelFault",
    "LabelMap",
    "LabelScheme",
    "LabelValues",
    "check_labels",
    "examine",
    "fault_of",
    "no_label",
    "parse_mapping",
    "parse_names",
    "read_label_map",
    "read_label_table",
    "read_mapping",
    "renumbering_advice",
]

__getattr__ = lazily(
    __name__,
    {
        "label_map": "LabelFault LabelMap LabelValues check_labels examine fault_of no_label read_label_map",
        "regions": "ORDER_KEY",
        "scheme": (
            "ANNOTATED_KEY IGNORE MAPPING_KEY LabelScheme parse_mapping parse_names read_label_table read_mapping "
            "renumbering_advice"
        ),
    },
)
