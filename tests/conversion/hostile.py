"""Values whose pickles are odd."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Shadowed:
    """Pickled as a table whose own attribute hides one of its methods."""

    def __init__(self, items: dict[str, Any], hidden: str) -> None:
        self._parts = (OrderedDict, (), {hidden: 3}, None, iter(items.items()))

    def __reduce__(self) -> Any:
        return self._parts
