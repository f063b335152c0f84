"""The console for people, a file of its own since rich takes long to import and many commands print nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from medseg.cli._text import printable


class PlainConsole(Console):
    """A console whose texts are printable; rich's markup means something only where ``print`` is asked for it."""

    def print(self, *objects: Any, markup: bool = False, **options: Any) -> None:  # type: ignore[override]
        """Print texts and tables."""
        super().print(*objects, markup=markup, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text passes here, cells of tables included."""
        return super().render_str(printable(text), **options)
