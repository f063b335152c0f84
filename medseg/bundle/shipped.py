"""The bundles that come with medseg, in a source tree or in an installed package."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import UsageError

__all__ = ["shipped_bundle"]

_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = (_PACKAGE / "_shipped" / "bundles", _PACKAGE.parent / "bundles")


def shipped_bundle(name: str) -> Path:
    """Folder of a bundle that comes with medseg; copy it before training writes into it.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    for place in _PLACES:
        if (place / name / "configs" / "metadata.json").is_file():
            return place / name
    known = sorted({path.name for place in _PLACES if place.is_dir() for path in place.iterdir() if path.is_dir()})
    raise UsageError(f"medseg ships no bundle {name!r}; it ships {', '.join(known)}")
