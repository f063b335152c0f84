"""Bundles by name: in ``./bundles``, and among those that come with medseg (in a source tree or installed)."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from medseg.errors import UsageError

__all__ = ["find_bundle", "is_installed_with_medseg", "list_bundles", "shipped_bundle"]

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "_shipped" / "bundles"
_PLACES = (_INSTALLED, _PACKAGE.parent / "bundles")
_OWN = Path("bundles")


def find_bundle(path: str | PathLike[str], start: Path | None = None) -> Path:
    """Folder of a bundle that is given by its path or by a bare name.

    A folder of that path comes first, then ``bundles/NAME``, then the bundles that come with medseg. Relative paths
    begin at ``start``, by default the current folder. What is found nowhere is returned as it was given: opening it
    says what is wrong.
    """
    base, name = start or Path(), Path(path)
    if (base / name).exists() or len(name.parts) != 1:
        return base / name
    return next((place / name for place in (base / _OWN, *_PLACES) if _is_bundle(place / name)), base / name)


def list_bundles() -> list[Path]:
    """Folders of the bundles that a bare name finds from here, sorted by name."""
    found: dict[str, Path] = {}
    for place in (_OWN, *_PLACES):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if _is_bundle(folder):
                found.setdefault(folder.name, folder)
    return [found[name] for name in sorted(found)]


def shipped_bundle(name: str) -> Path:
    """Folder of a bundle that comes with medseg; copy it before training writes into it.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    for place in _PLACES:
        if _is_bundle(place / name):
            return place / name
    known = sorted({path.name for place in _PLACES if place.is_dir() for path in place.iterdir() if path.is_dir()})
    raise UsageError(f"medseg ships no bundle {name!r}; it ships {', '.join(known)}")


def is_installed_with_medseg(folder: str | PathLike[str]) -> bool:
    """Whether a folder belongs to the installed package, where the next update would overwrite what is written."""
    return Path(folder).resolve().is_relative_to(_INSTALLED)


def _is_bundle(folder: Path) -> bool:
    return (folder / "configs" / "metadata.json").is_file()
