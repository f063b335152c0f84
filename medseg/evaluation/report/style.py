"""How numbers and structures look in the report: digits by metric, the structures' colours for the viewer."""

from __future__ import annotations

import json
from collections.abc import Mapping

from medseg.pictures import colour, rgb

__all__ = ["label_table", "number"]

_NOTHING = "–"


def number(value: float | None, metric: str) -> str:
    """A value with the digits that its unit deserves: three for scores, two for mm, three significant for ml."""
    if value is None:
        return _NOTHING
    if metric.endswith("_ml"):
        sign = "+" if metric == "volume_difference_ml" and value > 0 else ""
        return f"{sign}{_significant(value)}".replace("-", "−")
    return f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"


def _significant(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 3.21, 45.6, 1234."""
    if value == 0:
        return "0"
    size = abs(value)
    decimals = next((d for limit, d in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if size >= limit), 4)
    return f"{value:.{decimals}f}"


def label_table(names: Mapping[int, str]) -> str:
    """Label colours for the viewer, as JSON that is safe inside a script element; above 255 they share one."""
    table: dict[int, tuple[str, str]] = {0: ("#000000", "background")}
    for index, (label, name) in enumerate(names.items()):
        table[min(label, 255)] = (colour(index), name)
    channels = {channel: [rgb(c)[place] for c, _ in table.values()] for place, channel in enumerate("RGB")}
    value = {
        **channels,
        "A": [0] + [255] * (len(table) - 1),
        "I": list(table),
        "labels": [name for _, name in table.values()],
    }
    return json.dumps(value).replace("<", "\\u003c").replace("&", "\\u0026")
