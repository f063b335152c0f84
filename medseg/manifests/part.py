"""Which items of a datalist are meant: a section, or what a fold holds out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError
from medseg.manifests.manifest import Item, Manifest

__all__ = ["Part"]

_SAME_SECTION = {"test": ("test", "testing"), "testing": ("test", "testing")}


@dataclass(frozen=True)
class Part:
    """Which items of a datalist are meant.

    Parameters
    ----------
    section
        ``"training"``, ``"validation"`` or ``"test"`` (also called ``"testing"``); None for all.
    fold
        The training items that this fold holds out; None for all.
    """

    section: str | None = None
    fold: int | None = None

    def of(self, manifest: Manifest, path: Path) -> list[Item]:
        """The items of a datalist that are meant; ``path`` is where it lies, for messages.

        Raises
        ------
        UsageError
            If there are none, or a fold is asked for outside of training.
        """
        if self.fold is not None:
            if self.section not in {None, "training"}:
                raise UsageError(f"--fold {self.fold} chooses training items, found --section {self.section}; drop one")
            return manifest.fold(self.fold)[1]
        names = _SAME_SECTION.get(self.section or "", (self.section,))
        chosen = [item for section, _, item in manifest.items() if self.section is None or section in names]
        if self.section is not None and not chosen:
            sizes = Counter(section for section, _, _ in manifest.items())
            held = ", ".join(f"{count} under {name}" for name, count in sizes.items()) or "none"
            raise UsageError(
                f"--section {self.section}: {path} has no such items (found {held}); choose another section"
            )
        return chosen
